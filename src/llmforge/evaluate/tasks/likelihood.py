"""The log-likelihoods of the answers to many questions, with what they share computed once.

The prompts of a subject begin alike (its header and shots): those tokens go through the model once, and their keys and values
are used again for every question. The options of one question are computed in one row behind it, each of which sees
the question and itself. A model whose cache or attention cannot do that gives other figures: both ways are compared on the
longest row, and the plain way, one row for each option, is taken where they differ.
"""

import copy
import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llmforge.console import say
from llmforge.evaluate.models import Loaded

Ids = npt.NDArray[np.int32]
WORTHWHILE = 16  # shared tokens, below which using them again saves nothing
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


def to_rows(loaded: Loaded, prompts: Sequence[tuple[str, Sequence[str]]]) -> list[Row]:
    """The rows of (prompt, what may follow it).

    Prompt and option are encoded together, as text is; where the last tokens of the prompt differ between options, they count as
    part of the options, so that the same text is compared.
    """
    texts = [prompt + option for prompt, options in prompts for option in options]
    flat, offsets = loaded.tokenizer.encode(texts)
    prefix = np.asarray(loaded.tokenizer.prefix_ids, dtype=np.int32)
    whole = [np.concatenate((prefix, flat[a:b])) for a, b in itertools.pairwise(offsets)]
    alone, bounds = loaded.tokenizer.encode([prompt for prompt, _ in prompts])
    rows, position = [], 0
    for number, (_, options) in enumerate(prompts):
        group = whole[position : position + len(options)]
        position += len(options)
        context = np.concatenate((prefix, alone[bounds[number] : bounds[number + 1]]))
        shared = min(shared_length([context, *group]), min(map(len, group)) - 1)
        rows.append(Row(group[0][:shared], tuple(ids[shared:] for ids in group)))
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
        self._compared = 0  # the length up to which both ways were compared
        model: Any = loaded.model
        parameters = inspect.signature(model.forward).parameters
        self._narrow = "logits_to_keep" in parameters
        # transformers 5.24 renamed it; a model that takes it among **kwargs alone has the older name
        self._cache = "cache" if "cache" in parameters else "past_key_values"

    @torch.inference_mode()
    def score(self, rows: Sequence[Row], advance: Callable[..., None]) -> list[npt.NDArray[np.float64]]:
        """For each row the log-likelihood of each option, in nats."""
        if self.shares:
            longest = max(range(len(rows)), key=lambda i: rows[i].length)
            try:
                scores = self._shared(rows, advance)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a model raises over a mask or a cache that it does not know
                self._give_up(type(error).__name__)
            else:
                if self._agrees(rows[longest], scores[longest]):
                    return scores
        return self._plain(rows, advance)

    def _shared(self, rows: Sequence[Row], advance: Callable[..., None]) -> list[npt.NDArray[np.float64]]:
        """The fast way."""
        found: dict[int, npt.NDArray[np.float64]] = {}
        shared = shared_length([row.context for row in rows])
        shared = min(shared, min(len(row.context) for row in rows) - 1)
        if shared < WORTHWHILE or len(rows) == 1:
            shared = 0
        past = self._past(rows[0].context[:shared]) if shared else None
        order = sorted(range(len(rows)), key=lambda i: rows[i].length, reverse=True)
        while order:
            width = rows[order[0]].length - shared
            # Keys and values of the shared part stand in memory once for each row.
            count = max(1, min(self.batch_tokens // width, 8 * self.batch_tokens // (shared + width)))
            batch, order = order[:count], order[count:]
            for i, scores in zip(batch, self._batch([rows[i] for i in batch], shared, past), strict=True):
                found[i] = scores
            advance(len(batch))
        return [found[i] for i in range(len(rows))]

    def _past(self, ids: Ids) -> Any:
        """The keys and values of `ids`."""
        made = self.loaded.model(input_ids=self._tensor(ids[None]), use_cache=True, **self._keep([0]))
        return made[self._cache]

    def _batch(self, rows: Sequence[Row], shared: int, past: Any) -> list[npt.NDArray[np.float64]]:
        """The scores of rows whose first `shared` ids are in `past` already."""
        width = max(row.length for row in rows) - shared
        ids = np.zeros((len(rows), width), dtype=np.int64)
        positions = np.zeros((len(rows), width), dtype=np.int64)
        branch = np.full((len(rows), width), -1, dtype=np.int64)  # 0: the question, n: option n, -1: padding
        needed: set[int] = set()
        for number, row in enumerate(rows):
            at = len(row.context) - shared
            ids[number, :at] = row.context[shared:]
            positions[number, :at] = np.arange(shared, len(row.context))
            branch[number, :at] = 0
            needed.add(at - 1)
            for option, tokens in enumerate(row.options, start=1):
                end = at + len(tokens) - 1
                ids[number, at:end] = tokens[:-1]
                positions[number, at:end] = len(row.context) + np.arange(end - at)
                branch[number, at:end] = option
                needed.update(range(at, end))
                at = end
        kept = sorted(needed)
        given: dict[str, Any] = {"use_cache": past is not None, **self._keep(kept)}
        if past is not None:
            repeated = copy.deepcopy(past)
            repeated.batch_repeat_interleave(len(rows))
            given[self._cache] = repeated
        if any(row.branched for row in rows):
            given["attention_mask"] = self._mask(branch, shared)
            given["position_ids"] = self._tensor(positions)
        logits = self._logits(self.loaded.model(input_ids=self._tensor(ids), **given).logits, kept, width)
        return [
            self._scores(logits[number], row, {position: i for i, position in enumerate(kept)}, shared)
            for number, row in enumerate(rows)
        ]

    def _scores(
        self, logits: torch.Tensor, row: Row, index: dict[int, int], shared: int
    ) -> npt.NDArray[np.float64]:
        """`logits[index[position]]` are those behind each position of the row that counts."""
        at = len(row.context) - shared
        scores, first = [], logits[index[at - 1]].float().log_softmax(-1)
        for tokens in row.options:
            total = first[int(tokens[0])].double()
            if len(tokens) > 1:
                places = [index[position] for position in range(at, at + len(tokens) - 1)]
                inner = logits[places].float().log_softmax(-1)
                wanted = self._tensor(tokens[1:])
                total = total + inner.gather(1, wanted[:, None]).double().sum()
                at += len(tokens) - 1
            scores.append(float(total))
        return np.array(scores)

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

    def _plain(self, rows: Sequence[Row], advance: Callable[..., None]) -> list[npt.NDArray[np.float64]]:
        """The same from one row for each option, and one for all options of one token."""
        flat: list[tuple[int, int, Row]] = []
        for number, row in enumerate(rows):
            if row.branched:
                flat += [(number, i, Row(row.context, (option,))) for i, option in enumerate(row.options)]
            else:
                flat.append((number, -1, row))
        flat.sort(key=lambda entry: entry[2].length, reverse=True)
        found = [np.zeros(len(row.options)) for row in rows]
        while flat:
            count = max(1, self.batch_tokens // flat[0][2].length)
            batch, flat = flat[:count], flat[count:]
            for (number, option, _), scores in zip(
                batch, self._plain_batch([r for *_, r in batch]), strict=True
            ):
                if option < 0:
                    found[number][:] = scores
                else:
                    found[number][option] = scores[0]
            advance(sum(1 if option < 0 else 1 / len(rows[number].options) for number, option, _ in batch))
        return found

    def _plain_batch(self, rows: Sequence[Row]) -> list[npt.NDArray[np.float64]]:
        """Scores without a mask or a cache: padding is on the right, and attention is causal."""
        width = max(row.length for row in rows)
        ids = np.zeros((len(rows), width), dtype=np.int64)
        needed: set[int] = set()
        for number, row in enumerate(rows):
            tokens = np.concatenate((row.context, *(option[:-1] for option in row.options)))
            ids[number, : len(tokens)] = tokens
            needed.update(range(len(row.context) - 1, len(tokens)))
        kept = sorted(needed)
        given = self._keep(kept)
        logits = self._logits(
            self.loaded.model(input_ids=self._tensor(ids), use_cache=False, **given).logits, kept, width
        )
        index = {position: i for i, position in enumerate(kept)}
        return [self._scores(logits[number], row, index, 0) for number, row in enumerate(rows)]

    def _agrees(self, row: Row, fast: npt.NDArray[np.float64]) -> bool:
        """Whether the plain way gives what the fast way gave, on a row that is longer than those compared before."""
        if row.length <= self._compared:
            return True
        plain = self._plain([row], lambda *_: None)[0]
        difference = float(np.abs(fast - plain).max())
        if difference <= TOLERANCE[next(self.loaded.model.parameters()).element_size()]:
            self._compared = row.length
            return True
        self._give_up(f"its log-likelihoods differ by {difference:.2g}")
        return False

    def _give_up(self, reason: str) -> None:
        self.shares = False
        say(
            f"{self.loaded.tokenizer.directory.name}: shared prompts are computed again for each option ({reason})."
        )

    def _keep(self, positions: Sequence[int]) -> dict[str, Any]:
        """Lets the head compute these positions alone, where the model knows how."""
        if not self._narrow:
            return {}
        return {"logits_to_keep": torch.tensor(positions, device=self.loaded.device)}

    def _logits(self, logits: torch.Tensor, kept: Sequence[int], width: int) -> torch.Tensor:
        """(rows, kept, vocabulary), without the rows past the vocabulary; a model may have computed all positions."""
        if logits.shape[1] == width:
            logits = logits[:, list(kept)]
        return logits[:, :, : self.loaded.tokenizer.size]

    def _tensor(self, ids: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(ids.astype(np.int64)).to(self.loaded.device)
