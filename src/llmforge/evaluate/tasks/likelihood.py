"""The log-likelihoods of the answers to many questions, with what they share computed once.

The prompts of a subject begin alike (its header and shots): those tokens go through the model once, and their keys and values
are used again for every question, where that is less work than the shorter batches cost. The options of one question are
computed in one row behind it, each of which sees the question and itself. The head sees the positions that are scored alone.
A model whose cache or attention cannot do that gives other figures: both ways are compared on the longest row, and the plain
way, one row for each option, is taken where they differ.
"""

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llmforge.console import say
from llmforge.evaluate.models import Loaded
from llmforge.tokenizer import Tokenizer

Ids = npt.NDArray[np.int32]
Scores = npt.NDArray[np.float64]
SMALL = 64  # tokens: a forward of fewer costs as much, because all weights are read
FULL, PADDING = 256, 1.08  # a batch of more tokens ends where it would hold more padding than this
# Greatest difference of a log-likelihood between both ways, by the size of the data type: rounding alone is a tenth of it.
TOLERANCE = {4: 3e-3, 2: 0.5}


@dataclass(frozen=True)
class Row:
    """One question: the ids of its prompt, and those of each option that follow it."""

    context: Ids
    options: tuple[Ids, ...]

    @property
    def branched(self) -> bool:
        """Whether an option has more than one token, so that the model has to see its first ones."""
        return any(len(option) > 1 for option in self.options)

    @property
    def length(self) -> int:
        """How many ids the model is shown, where all options stand in one row."""
        return len(self.context) + sum(len(option) - 1 for option in self.options)

    @property
    def longest(self) -> int:
        """How many ids the prompt has with the longest option."""
        return len(self.context) + max(map(len, self.options))


def to_rows(tokenizer: Tokenizer, prompts: Sequence[tuple[str, Sequence[str]]]) -> list[Row]:
    """The rows of (prompt, what may follow it).

    Prompt and option are encoded together, as text is; where the last tokens of the prompt differ between options, they count as
    part of the options, so that the same text is compared.
    """
    texts = [prompt + option for prompt, options in prompts for option in options]
    flat, offsets = tokenizer.encode(texts)
    prefix = np.asarray(tokenizer.prefix_ids, dtype=np.int32)
    whole = [np.concatenate((prefix, flat[a:b])) for a, b in itertools.pairwise(offsets)]
    alone, bounds = tokenizer.encode([prompt for prompt, _ in prompts])
    rows, position = [], 0
    for number, (_, options) in enumerate(prompts):
        group = whole[position : position + len(options)]
        position += len(options)
        context = np.concatenate((prefix, alone[bounds[number] : bounds[number + 1]]))
        shared = min(shared_length([context, *group]), min(map(len, group)) - 1)
        rows.append(Row(group[0][:shared].copy(), tuple(ids[shared:].copy() for ids in group)))
    return rows


def shared_length(sequences: Sequence[Ids]) -> int:
    """How many ids all sequences begin with."""
    first, shared = sequences[0], min(map(len, sequences))
    for other in sequences[1:]:
        differ = np.flatnonzero(first[:shared] != other[:shared])
        shared = int(differ[0]) if len(differ) else shared
    return shared


class Scorer:
    """Scores rows by one model; batches hold at most `batch_tokens` tokens, padding included, and at least one row."""

    def __init__(self, loaded: Loaded, batch_tokens: int, share: bool = True) -> None:
        self.loaded, self.batch_tokens, self.shares = loaded, batch_tokens, share
        self._compared: dict[tuple[bool, bool], int] = {}  # up to which length both ways were compared
        model: Any = loaded.model
        parameters = inspect.signature(model.forward).parameters
        self._narrow = "logits_to_keep" in parameters
        # transformers 5.24 renamed it; a model that takes it among **kwargs alone has the older name
        self._cache = "cache" if "cache" in parameters else "past_key_values"

    def score(self, rows: Sequence[Row], advance: Callable[..., None]) -> list[Scores]:
        """For each row the log-likelihood of each option, in nats."""
        return [one[0] for one in self.judge([rows], advance)[0]]

    @torch.inference_mode()
    def judge(self, groups: Sequence[Sequence[Row]], advance: Callable[..., None]) -> list[list[Scores]]:
        """For each row of each group (2, options): the log-likelihoods, and 1 where every token of the option is the most
        likely one, else 0. Rows of a group begin alike.
        """
        if self.shares:
            try:
                found, checked = self._shared(groups, advance)
                if all(self._agrees(*one) for one in checked):
                    return found
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a model raises over a mask or a cache that it does not know
                self._give_up(type(error).__name__)
        return [self._plain(rows, advance) for rows in groups]

    def _shared(
        self, groups: Sequence[Sequence[Row]], advance: Callable[..., None]
    ) -> tuple[list[list[Scores]], list[tuple[Row, bool, Scores]]]:
        """The fast way, and the longest row of each kind with its scores."""
        found: dict[tuple[int, int], Scores] = {}
        alone: list[tuple[int, int]] = []
        used: dict[int, int] = {}  # group to the tokens that are computed once
        for number, rows in enumerate(groups):
            used[number] = self._worth_sharing(rows)
            if not used[number]:
                alone += [(number, i) for i in range(len(rows))]
                continue
            past = self._past(rows[0].context[: used[number]])
            for batch in self._batches([row.length for row in rows], used[number]):
                made = self._batch([rows[i] for i in batch], used[number], past)
                found.update({(number, i): scores for i, scores in zip(batch, made, strict=True)})
                advance(len(batch))
        for batch in self._batches([groups[g][i].length for g, i in alone]):
            made = self._batch([groups[alone[i][0]][alone[i][1]] for i in batch], 0, None)
            found.update({alone[i]: scores for i, scores in zip(batch, made, strict=True)})
            advance(len(batch))
        longest: dict[tuple[bool, bool], tuple[Row, bool, Scores]] = {}
        for (number, i), scores in found.items():
            row, shares = groups[number][i], bool(used[number])
            before = longest.get((shares, row.branched))
            if before is None or row.length > before[0].length:
                longest[shares, row.branched] = row, shares, scores
        scored = [[found[number, i] for i in range(len(rows))] for number, rows in enumerate(groups)]
        return scored, list(longest.values())

    def _worth_sharing(self, rows: Sequence[Row]) -> int:
        """How many tokens that all rows begin with are computed once; 0 where that would not be less work."""
        if len(rows) == 1:
            return 0
        shared = shared_length([row.context for row in rows])
        shared = min(shared, min(len(row.context) for row in rows) - 1)
        lengths = [row.length for row in rows]
        batches = self._batches(lengths, shared)
        work = sum(max(SMALL, len(batch) * (lengths[batch[0]] - shared)) for batch in batches)
        return shared if max(SMALL, shared) + work < sum(lengths) else 0

    def _batches(self, lengths: Sequence[int], shared: int = 0) -> list[list[int]]:
        """The numbers of the rows of each batch, longest first; `shared` tokens of each length are computed already."""
        batches: list[list[int]] = []
        filled = 0  # tokens of the last batch without padding
        for i in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
            own = lengths[i] - shared
            if batches:
                last, width = batches[-1], lengths[batches[-1][0]] - shared
                padded = (len(last) + 1) * width
                # Keys and values of the shared part stand in memory once for each row.
                fits = (
                    padded <= self.batch_tokens
                    and (len(last) + 1) * (shared + width) <= 8 * self.batch_tokens
                )
                if fits and (len(last) * width < FULL or padded <= PADDING * (filled + own)):
                    last.append(i)
                    filled += own
                    continue
            batches.append([i])
            filled = own
        return batches

    def _past(self, ids: Ids) -> Any:
        """The keys and values of `ids`."""
        with self._head_at([0], [0]):
            return self.loaded.model(input_ids=self._tensor(ids[None]), use_cache=True)[self._cache]

    def _batch(self, rows: Sequence[Row], shared: int, past: Any) -> list[Scores]:
        """The scores of rows whose first `shared` ids are in `past` already."""
        width = max(row.length for row in rows) - shared
        ids = np.zeros((len(rows), width), dtype=np.int64)
        positions = np.zeros((len(rows), width), dtype=np.int64)
        branch = np.full((len(rows), width), -1, dtype=np.int64)  # 0: the question, n: option n, -1: padding
        needed: list[tuple[int, int]] = []
        for number, row in enumerate(rows):
            at = len(row.context) - shared
            ids[number, :at] = row.context[shared:]
            positions[number, :at] = np.arange(shared, len(row.context))
            branch[number, :at] = 0
            needed.append((number, at - 1))
            for option, tokens in enumerate(row.options, start=1):
                end = at + len(tokens) - 1
                ids[number, at:end] = tokens[:-1]
                positions[number, at:end] = len(row.context) + np.arange(end - at)
                branch[number, at:end] = option
                needed += [(number, position) for position in range(at, end)]
                at = end
        given: dict[str, Any] = {"use_cache": past is not None}
        if past is not None:
            repeated = copy.deepcopy(past)
            repeated.batch_repeat_interleave(len(rows))
            given[self._cache] = repeated
        if any(row.branched for row in rows):
            given["attention_mask"] = self._mask(branch, shared)
            given["position_ids"] = self._tensor(positions)
        with self._head_at(*map(list, zip(*needed, strict=True))):
            logits = self.loaded.model(input_ids=self._tensor(ids), **given).logits[0]
        sizes = [1 + sum(len(option) - 1 for option in row.options) for row in rows]
        return [self._scores(part, row) for part, row in zip(logits.split(sizes), rows, strict=True)]

    @contextmanager
    def _head_at(self, rows: list[int], positions: list[int]) -> Iterator[None]:
        """Inside, the head computes these positions of these rows alone: logits are (1, positions, vocabulary)."""

        def select(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (given[0][rows, positions][None], *given[1:])

        hook = self.loaded.model.get_output_embeddings().register_forward_pre_hook(select)
        try:
            yield
        finally:
            hook.remove()

    def _scores(self, logits: torch.Tensor, row: Row) -> Scores:
        """From the logits behind the prompt, and behind every token but the last of each option."""
        logits = logits[:, : self.loaded.tokenizer.size].float()  # without the rows past the vocabulary
        best, predicted = logits.argmax(-1).tolist(), logits.log_softmax(-1)
        scores, greedy, at = [], [], 1
        for tokens in row.options:
            places = [0, *range(at, at + len(tokens) - 1)]
            at += len(tokens) - 1
            found = predicted[places].gather(1, self._tensor(tokens)[:, None]) if len(places) > 1 else None
            scores.append(
                float(predicted[0, int(tokens[0])]) if found is None else float(found.double().sum())
            )
            greedy.append(float(all(best[p] == int(one) for p, one in zip(places, tokens, strict=True))))
        return np.array([scores, greedy])

    def _mask(self, branch: npt.NDArray[np.int64], shared: int) -> torch.Tensor:
        """(rows, 1, width, shared + width): 0 where a token is seen, the lowest number elsewhere."""
        width = branch.shape[1]
        earlier = np.tri(width, dtype=bool)
        seen = earlier & ((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None]))
        seen |= np.eye(width, dtype=bool)  # padding sees itself, so that no row is empty
        seen = np.concatenate((np.ones((*seen.shape[:2], shared), dtype=bool), seen), axis=2)
        dtype = next(self.loaded.model.parameters()).dtype
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(
            ~torch.from_numpy(seen), torch.finfo(dtype).min
        )
        return mask[:, None].to(self.loaded.device)

    def _plain(self, rows: Sequence[Row], advance: Callable[..., None]) -> list[Scores]:
        """The same from one row for each option, and one for all options of one token."""
        flat: list[tuple[int, int, Row]] = []
        for number, row in enumerate(rows):
            if row.branched:
                flat += [(number, i, Row(row.context, (option,))) for i, option in enumerate(row.options)]
            else:
                flat.append((number, -1, row))
        flat.sort(key=lambda entry: entry[2].length, reverse=True)
        found = [np.zeros((2, len(row.options))) for row in rows]
        while flat:
            count = max(1, self.batch_tokens // flat[0][2].length)
            batch, flat = flat[:count], flat[count:]
            for (number, option, _), scores in zip(
                batch, self._plain_batch([r for *_, r in batch]), strict=True
            ):
                if option < 0:
                    found[number][:] = scores
                else:
                    found[number][:, option] = scores[:, 0]
            advance(sum(1 if option < 0 else 1 / len(rows[number].options) for number, option, _ in batch))
        return found

    def _plain_batch(self, rows: Sequence[Row]) -> list[Scores]:
        """Scores without a mask or a cache: padding is on the right, and attention is causal."""
        width = max(row.length for row in rows)
        ids = np.zeros((len(rows), width), dtype=np.int64)
        needed: set[int] = set()
        for number, row in enumerate(rows):
            tokens = np.concatenate((row.context, *(option[:-1] for option in row.options)))
            ids[number, : len(tokens)] = tokens
            needed.update(range(len(row.context) - 1, len(tokens)))
        kept = sorted(needed)
        given = {"logits_to_keep": torch.tensor(kept, device=self.loaded.device)} if self._narrow else {}
        logits = self.loaded.model(input_ids=self._tensor(ids), use_cache=False, **given).logits
        if logits.shape[1] == width:  # a model may have computed all positions
            logits = logits[:, kept]
        index = {position: i for i, position in enumerate(kept)}
        places = [[index[p] for p in range(len(row.context) - 1, row.length)] for row in rows]
        return [self._scores(logits[i, places[i]], row) for i, row in enumerate(rows)]

    def _agrees(self, row: Row, shares: bool, fast: Scores) -> bool:
        """Whether the plain way gives what the fast way gave, on a row that is longer than those compared before."""
        kind = shares, row.branched
        if row.length <= self._compared.get(kind, 0):
            return True
        plain = self._plain([row], lambda *_: None)[0]
        difference = float(np.abs(fast[0] - plain[0]).max())
        if difference <= TOLERANCE[next(self.loaded.model.parameters()).element_size()]:
            self._compared[kind] = row.length
            return True
        self._give_up(f"its log-likelihoods differ by {difference:.2g}")
        return False

    def _give_up(self, reason: str) -> None:
        self.shares = False
        say(
            f"{self.loaded.tokenizer.directory.name}: shared prompts are computed again for each option ({reason})."
        )

    def _tensor(self, ids: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(ids.astype(np.int64)).to(self.loaded.device)
