"""Short pieces of running text, cut by both tokenizers alike."""

from dataclasses import dataclass

import numpy as np

from llmforge.corpus import Reader
from llmforge.embedding.rows import Bool, Int32, Int64
from llmforge.errors import UserError
from llmforge.tokenizer import Tokenizer

POOL = 48  # tokens that are looked at for each one that is chosen
LEAST_READ, MOST_READ = 1_000_000, 20_000_000  # characters
BEFORE, AFTER = 16, 4  # tokens kept before the first new token of a snippet, and after the last
ROUNDS = 32  # of choosing, before each of which the gain of what is left is counted anew
BUCKET = 16  # batches whose snippets are sorted by length


@dataclass(frozen=True)
class Texts:
    """Texts as both tokenizers cut them, one behind the other.

    `old_ids`, `new_ids` int32; `old_last` int64 [new ids] is the old token that ends where the new one does, -1 where none
    does. `starts` and `old_starts` int64 [texts] are where each begins.
    """

    old_ids: Int32
    new_ids: Int32
    old_last: Int64
    starts: Int64
    old_starts: Int64


@dataclass(frozen=True)
class Snippets:
    """Pieces of `texts`: the new tokens from `starts` to `stops` and the old ones from `old_starts` to `old_stops`, int64."""

    texts: Texts
    starts: Int64
    stops: Int64
    old_starts: Int64
    old_stops: Int64

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> Int64:
        """In new tokens."""
        return self.stops - self.starts

    def some(self, which: Int64 | Bool) -> "Snippets":
        """Those of `which`, in its order."""
        chosen = (part[which] for part in (self.starts, self.stops, self.old_starts, self.old_stops))
        return Snippets(self.texts, *chosen)


@dataclass(frozen=True)
class Batch:
    """Snippets side by side, int64 and padded on the right: `old_ids` and `new_ids` [snippets, width], the start ids first.

    `lengths` int64 [snippets] are those in new tokens. The states to compare are those at (`row`, `new_column`) and (`row`, `old_column`), int64 [states]: the ends of tokens
    from the first new one on.
    """

    old_ids: Int64
    new_ids: Int64
    lengths: Int64
    row: Int64
    new_column: Int64
    old_column: Int64


def read_texts(source: Tokenizer, target: Tokenizer, reader: Reader, tokens: int) -> Texts:
    """The first texts of `reader`: `POOL` times `tokens` tokens, or all there are.

    A text of which the tokenizers do not make the same bytes (one has an unknown character) is left out. Raises
    `UserError` where there is no new token in all of it.
    """
    old_bytes, new_bytes = (
        np.array([len(text) for text in tokenizer.token_bytes()], np.int64) for tokenizer in (source, target)
    )
    parts: list[Texts] = []
    old_before = new_before = 0
    for texts in reader.batches(min(max(POOL * tokens, LEAST_READ), MOST_READ)):
        old_ids, old_offsets = source.encode(texts)
        new_ids, new_offsets = target.encode(texts)
        old_sizes, new_sizes = (
            np.diff(np.append(0, np.cumsum(sizes[ids]))[offsets])
            for sizes, ids, offsets in ((old_bytes, old_ids, old_offsets), (new_bytes, new_ids, new_offsets))
        )
        keep = (old_sizes == new_sizes) & (new_sizes > 0)
        old_ids, old_starts = _kept(old_ids, old_offsets, keep)
        new_ids, starts = _kept(new_ids, new_offsets, keep)
        old_ends, new_ends = np.cumsum(old_bytes[old_ids]), np.cumsum(new_bytes[new_ids])
        last = np.searchsorted(old_ends, new_ends, "right") - 1
        ends_too = old_ends[last] == new_ends if len(old_ends) else np.zeros(0, np.bool_)
        parts.append(
            Texts(
                old_ids,
                new_ids,
                np.where(ends_too, last + old_before, -1),
                starts + new_before,
                old_starts + old_before,
            )
        )
        old_before, new_before = old_before + len(old_ids), new_before + len(new_ids)
        if new_before >= POOL * tokens:
            break
    joined = Texts(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in Texts.__dataclass_fields__)
    )
    if not (joined.new_ids >= source.size).any():
        raise UserError(
            f"--data holds none of the {target.size - source.size:,} new tokens of {target.directory} in its first "
            f"{new_before:,} tokens; give texts of the language that they are for."
        )
    return joined


def cut(texts: Texts, length: int) -> Snippets:
    """All of `texts` in snippets of at most `length` new tokens, but for those that do not begin and end where an old token does."""
    lengths = np.diff(np.append(texts.starts, len(texts.new_ids)))
    pieces = -(-lengths // length)
    text = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(len(text)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = texts.starts[text] + number * length
    return _bounded(texts, starts, np.minimum(starts + length, texts.starts[text] + lengths[text]))


def around_new_tokens(snippets: Snippets, old_size: int) -> Snippets:
    """The `snippets` with new tokens, without what lies far before the first of them and behind the last."""
    texts = snippets.texts
    new = np.flatnonzero(texts.new_ids >= old_size)
    first, behind = np.searchsorted(new, snippets.starts), np.searchsorted(new, snippets.stops)
    some = snippets.some(behind > first)
    first, behind = first[behind > first], behind[behind > first]
    return _bounded(
        texts,
        np.maximum(some.starts, new[first] - BEFORE),
        np.minimum(some.stops, new[behind - 1] + 1 + AFTER),
    )


def choose_even(snippets: Snippets, old_size: int, new_size: int, tokens: int) -> Snippets:
    """Snippets of `tokens` tokens in all, or all there are, that show the new tokens most evenly.

    The gain of a snippet is the sum over its new tokens of 1 / (1 + how often they were chosen before), over its length:
    the first sight of a rare token is worth more than the hundredth of a frequent one.
    """
    ids, number = snippets.texts.new_ids, new_size - old_size
    kind = np.where(ids >= old_size, ids - old_size, number)
    seen = np.zeros(number + 1)
    lengths, free = snippets.lengths, np.ones(len(snippets), np.bool_)
    at_once = max(1, tokens // (ROUNDS * int(lengths.max())))
    chosen: list[Int64] = []
    total = 0
    while total < tokens and free.any():
        worth = 1 / (1 + seen)
        worth[-1] = 0
        sums = np.append(0, np.cumsum(worth[kind]))
        gain = np.where(free, (sums[snippets.stops] - sums[snippets.starts]) / lengths, -1)
        best = np.argsort(-gain, kind="stable")[: min(at_once, int(free.sum()))]
        free[best] = False
        shown = np.concatenate([kind[snippets.starts[i] : snippets.stops[i]] for i in best])
        seen += np.bincount(shown, minlength=len(seen))
        chosen.append(best)
        total += int(lengths[best].sum())
    return snippets.some(np.concatenate(chosen))


def choose_at_random(snippets: Snippets, tokens: int, generator: np.random.Generator) -> Snippets:
    """Snippets of `tokens` tokens in all, or all there are."""
    order = generator.permutation(len(snippets))
    before = np.cumsum(snippets.lengths[order]) - snippets.lengths[order]
    return snippets.some(order[before < tokens])


def in_batches(
    snippets: Snippets, start_ids: tuple[int, ...], old_size: int, tokens: int, generator: np.random.Generator
) -> list[Batch]:
    """The `snippets`, shuffled, in batches of at most `tokens` new tokens, padding included, and at least one snippet."""
    order = generator.permutation(len(snippets))
    lengths = snippets.lengths
    in_bucket = max(1, BUCKET * tokens // int(lengths.max()))
    groups: list[Int64] = []
    for first in range(0, len(order), in_bucket):
        part = order[first : first + in_bucket]
        part = part[np.argsort(-lengths[part], kind="stable")]
        taken = 0
        while taken < len(part):
            count = max(1, tokens // int(lengths[part[taken]]))
            groups.append(part[taken : taken + count])
            taken += count
    return [
        _collated(snippets.some(groups[i]), start_ids, old_size) for i in generator.permutation(len(groups))
    ]


def _collated(snippets: Snippets, start_ids: tuple[int, ...], old_size: int) -> Batch:
    texts, given = snippets.texts, len(start_ids)
    old_lengths, lengths = snippets.old_stops - snippets.old_starts, snippets.lengths
    old_ids = np.full((len(snippets), given + int(old_lengths.max())), start_ids[0], np.int64)
    new_ids = np.full((len(snippets), given + int(lengths.max())), start_ids[0], np.int64)
    old_ids[:, :given] = new_ids[:, :given] = start_ids
    places: list[tuple[Int64, Int64, Int64]] = []
    for row in range(len(snippets)):
        new, old = (
            slice(snippets.starts[row], snippets.stops[row]),
            slice(snippets.old_starts[row], snippets.old_stops[row]),
        )
        ids, last = texts.new_ids[new], texts.old_last[new]
        new_ids[row, given : given + len(ids)] = ids
        old_ids[row, given : given + old_lengths[row]] = texts.old_ids[old]
        where = np.flatnonzero((last >= 0) & (np.cumsum(ids >= old_size) > 0))
        places.append((np.full(len(where), row), where + given, last[where] - old.start + given))
    row_, new_column, old_column = (np.concatenate(one).astype(np.int64) for one in zip(*places, strict=True))
    return Batch(old_ids, new_ids, lengths, row_, new_column, old_column)


def _bounded(texts: Texts, starts: Int64, stops: Int64) -> Snippets:
    """Those of the snippets whose ends are ends of old tokens too: of the others the source would see other text."""
    text = np.searchsorted(texts.starts, starts, "right") - 1
    at_start = starts == texts.starts[text]
    before = texts.old_last[starts - 1]
    old_starts = np.where(at_start, texts.old_starts[text], before + 1)
    old_stops = texts.old_last[stops - 1] + 1
    good = (at_start | (before >= 0)) & (old_stops > old_starts)
    return Snippets(texts, starts[good], stops[good], old_starts[good], old_stops[good])


def _kept(ids: Int32, offsets: Int64, keep: Bool) -> tuple[Int32, Int64]:
    """The ids of the texts to `keep`, and where each of these begins."""
    lengths = np.diff(offsets)
    return ids[np.repeat(keep, lengths)], np.cumsum(lengths[keep]) - lengths[keep]
