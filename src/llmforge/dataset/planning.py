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


def find_cuts(passes: Callable[[], Iterator[Weighed]], targets: list[Int64]) -> list[Keys]:
    """For each category the keys at which the running weight, in the order of keys, reaches its `targets`
    (rising).

    `passes()` goes once over all documents. A document whose middle lies before a target has a key below the
    cut.
    """
    shift = np.uint64(64 - BUCKET_BITS)
    weight = np.zeros((len(targets), 1 << BUCKET_BITS), np.int64)
    for category, key, weights in passes():
        flat = (category << BUCKET_BITS) + (key >> shift).astype(np.int64)
        weight += np.bincount(flat, weights, weight.size).astype(np.int64).reshape(weight.shape)
    ends = np.cumsum(weight, axis=1)
    buckets = [np.searchsorted(ends[c], targets[c], side="left") for c in range(len(targets))]
    near = np.zeros(weight.shape, np.bool_)
    for c, found in enumerate(buckets):
        near[c, found[found < near.shape[1]]] = True
    nothing = np.zeros(0, np.int64)
    held: list[Weighed] = [(nothing, nothing.astype(np.uint64), nothing)]
    for category, key, weights in passes():
        chosen = near[category, (key >> shift).astype(np.int64)]
        if chosen.any():
            held.append((category[chosen], key[chosen], weights[chosen]))
    category, key, weights = (np.concatenate([part[i] for part in held]) for i in range(3))
    order = np.lexsort((key, category))
    category, key, weights = category[order], key[order], weights[order]
    cuts = []
    for c, found in enumerate(buckets):
        begin, end = np.searchsorted(category, [c, c + 1])
        own, heavy = key[begin:end], weights[begin:end]
        own_bucket = (own >> shift).astype(np.int64)
        mine = np.full(len(found), LAST_KEY)
        for i, bucket in enumerate(found.tolist()):
            if bucket >= near.shape[1]:
                continue  # the target is beyond all there is
            first, last = np.searchsorted(own_bucket, [bucket, bucket + 1])
            middle = (
                ends[c, bucket] - weight[c, bucket] + np.cumsum(heavy[first:last]) - heavy[first:last] / 2
            )
            after = first + int(np.searchsorted(middle, targets[c][i], side="left"))
            if after < last:
                mine[i] = own[after]
            elif bucket + 1 < near.shape[1]:
                mine[i] = np.uint64(bucket + 1) << shift
        cuts.append(mine)
    return cuts


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
