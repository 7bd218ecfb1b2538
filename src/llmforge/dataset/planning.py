"""Stage 2: which bin each document goes to, knowing only the shards' records.

Every document has a key, pseudo-random and its own. In the order of their keys the documents of a category
are cut into N bins of equal tokens. The cuts are found from a histogram of keys and a second look at the few
documents near a cut, so memory does not grow with the corpus: no order of all documents is ever made.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmforge.dataset.shards import RECORD, Records, Summary, read_hashes, read_records
from llmforge.dataset.shuffle import Keys, derived_seed, keys
from llmforge.errors import UserError

MOST_CATEGORIES = 4096
BUCKET_BITS = 12
BUFFERED_DOCUMENTS = 1 << 18
TOLERATED = 1 / 200
LAST_KEY = np.uint64(0xFFFFFFFFFFFFFFFF)

# A document of a bin.
PLACED = np.dtype([*RECORD.descr, ("chunk", "<u4")])

Int64 = npt.NDArray[np.int64]
# (category codes, keys, weights) of some documents
Weighed = tuple[Int64, Keys, Int64]


def category_names(summaries: Iterable[Summary]) -> list[str]:
    """All categories of the corpus, sorted."""
    names = sorted({name for summary in summaries for name in summary.categories})
    if len(names) > MOST_CATEGORIES:
        raise UserError(
            f"the documents name {len(names):,} categories ('{names[0]}', '{names[1]}', ...); at most "
            f"{MOST_CATEGORIES:,} are supported; --category-field names another field."
        )
    return names


def each_shard(
    shards: Path, summaries: list[Summary], names: list[str]
) -> Iterator[tuple[Summary, int, Records]]:
    """(summary, number of documents before, records with `category` an index of `names`) of every shard."""
    code = {name: i for i, name in enumerate(names)}
    before = 0
    for summary in summaries:
        if summary.documents:
            records = read_records(shards, summary.number)
            records["category"] = np.array([code[name] for name in summary.categories], "<u2")[
                records["category"]
            ]
            yield summary, before, records
        before += summary.documents


def find_cuts(
    passes: Callable[[], Iterator[Weighed]], targets: list[Int64], *, together: bool = False
) -> list[Keys]:
    """For each category the keys at which the running weight, in the order of keys, comes nearest to its `targets`
    (rising). A document whose middle lies before a target has a key below the cut.

    `together` it is the sum over the categories that comes near: they are cut in turn, those of the largest documents
    first, and each makes up for what those before are over or under by more than `TOLERATED` of what lies between two
    sums of targets, with less than half of what lies between two of its own.

    `passes()` goes twice over all documents. Those are held whose running weight may be that of a cut: of a bucket or
    two for each, or as much as the largest documents weigh.
    """
    shift = np.uint64(64 - BUCKET_BITS)
    weight = np.zeros((len(targets), 1 << BUCKET_BITS), np.int64)
    largest = np.zeros(len(targets), np.int64)
    for category, key, weights in passes():
        flat = (category << BUCKET_BITS) + (key >> shift).astype(np.int64)
        weight += np.bincount(flat, weights, weight.size).astype(np.int64).reshape(weight.shape)
        np.maximum.at(largest, category, weights)
    ends = np.cumsum(weight, axis=1)
    order, tolerated = np.arange(len(targets)), 0
    reach = np.zeros(len(targets), np.int64)  # how far a category may make up for others
    if together:
        order = np.argsort(-largest, kind="stable")
        between = np.array([int(one[-1]) // len(one) for one in targets])  # two targets
        before = np.cumsum(largest[order]) - largest[order]
        reach[order] = np.minimum(before // 2 + 1, np.maximum(0, between[order] - 1) // 2)
        tolerated = int(between.sum() * TOLERATED)
    near = np.zeros(weight.shape, np.bool_)
    for c, wanted in enumerate(targets):
        lows, highs = (np.searchsorted(ends[c], wanted + by, side="left") for by in (-reach[c], reach[c]))
        for low, high in zip(lows.tolist(), highs.tolist(), strict=True):
            near[c, low : high + 1] = True
    nothing = np.zeros(0, np.int64)
    held: list[Weighed] = [(nothing, nothing.astype(np.uint64), nothing)]
    for category, key, weights in passes():
        chosen = near[category, (key >> shift).astype(np.int64)]
        if chosen.any():
            held.append((category[chosen], key[chosen], weights[chosen]))
    category, key, weights = (np.concatenate([part[i] for part in held]) for i in range(3))
    by_key = np.lexsort((key, category))
    category, key, weights = category[by_key], key[by_key], weights[by_key]
    cuts = [np.zeros(0, np.uint64)] * len(targets)
    over = np.zeros(len(targets[0]) if targets else 0, np.int64)
    for c in order.tolist():
        wanted, total = targets[c], int(ends[c, -1])
        if together:  # what is to be none or all of a category stays so
            excess = np.sign(over) * np.maximum(0, np.abs(over) - tolerated)
            moved = np.clip(wanted - np.clip(excess, -reach[c], reach[c]), 0, total)
            wanted = np.where((wanted > 0) & (wanted < total), moved, wanted)
        own = slice(*np.searchsorted(category, [c, c + 1]).tolist())
        cuts[c], reached = _category_cuts(key[own], weights[own], weight[c], wanted)
        over = over + reached - targets[c] if together else over
    return cuts


def _category_cuts(own: Keys, heavy: Int64, weight: Int64, targets: Int64) -> tuple[Keys, Int64]:
    """The cuts of one category, and the weight that lies before each; `weight` is that of its buckets, `own` and `heavy`
    are keys and weights, in the order of keys, of the documents of those buckets in which a cut may lie.
    """
    shift = np.uint64(64 - BUCKET_BITS)
    ends = np.cumsum(weight)
    own_bucket = (own >> shift).astype(np.int64)
    cuts, reached = np.full(len(targets), LAST_KEY), np.full(len(targets), ends[-1])
    for i, bucket in enumerate(np.searchsorted(ends, targets, side="left").tolist()):
        if bucket >= len(weight):
            continue  # the target is beyond all there is
        first, last = np.searchsorted(own_bucket, [bucket, bucket + 1])
        before = ends[bucket] - weight[bucket] + np.cumsum(heavy[first:last]) - heavy[first:last]
        middle = before + heavy[first:last] / 2
        after = int(np.searchsorted(middle, targets[i], side="left"))
        if first + after < last:
            cuts[i], reached[i] = own[first + after], before[after]
        elif bucket + 1 < len(weight):
            cuts[i], reached[i] = np.uint64(bucket + 1) << shift, ends[bucket]
    return cuts, reached


def text_keys(seed: int, shards: Path, number: int) -> Keys:
    """The keys of a shard's texts: equal texts have equal keys, so that a holdout takes all copies of a
    text.
    """
    return keys(derived_seed("holdout", seed), read_hashes(shards, number)[:, 0])


class BinFiles:
    """The placed documents of every bin, each in a file of PLACED; written in large portions."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.held: list[tuple[Int64, npt.NDArray[np.void]]] = []
        self.count = 0

    def add(self, bins: Int64, placed: npt.NDArray[np.void]) -> None:
        self.held.append((bins, placed))
        self.count += len(placed)
        if self.count >= BUFFERED_DOCUMENTS:
            self.flush()

    def flush(self) -> None:
        if self.count:
            bins = np.concatenate([b for b, _ in self.held])
            placed = np.concatenate([p for _, p in self.held])
            placed = placed.take(np.argsort(bins, kind="stable"))
            counts = np.bincount(bins)
            numbers = np.flatnonzero(counts)
            ends = np.cumsum(counts[numbers])
            for number, part in zip(numbers.tolist(), np.split(placed, ends[:-1]), strict=True):
                with bin_path(self.directory, number).open("ab") as file:
                    file.write(part.tobytes())
        self.held, self.count = [], 0


def bin_path(directory: Path, number: int) -> Path:
    return directory / f"bin-{number:05d}"


def place(records: Records, chunk: int) -> npt.NDArray[np.void]:
    """`records` with the chunk in whose shard they lie, as PLACED."""
    placed = np.empty(len(records), PLACED)
    for name in RECORD.names or ():
        placed[name] = records[name]
    placed["chunk"] = chunk
    return placed
