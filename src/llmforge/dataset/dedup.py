"""Duplicates across the whole corpus: of each set of equal (or nearly equal) documents the first in input
order stays.

Near duplicates are found by MinHash with locality-sensitive hashing (Broder 1997; Lee et al. 2021,
arXiv:2107.06499): 128 permutations over 5-word shingles in 16 bands of 8, a candidate confirmed where at
least 80 % of the permutations agree. Memory: 1 byte, and while it works some 50 bytes, per document;
signatures stay on disk.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmforge.dataset.shuffle import keys
from llmforge.dataset.words import words
from llmforge.errors import UserError

PERMUTATIONS, BANDS, SHINGLE, AGREEMENT = 128, 16, 5, 0.8
SEED = 1
EXACT, NEAR = "duplicate", "near duplicate"
Flags = npt.NDArray[np.bool_]


def minhash_library() -> Any:
    """`rensa`, or a `UserError` that says how to get it."""
    try:
        import rensa
    except ImportError:
        raise UserError('--dedup near needs rensa; run: pip install "llmforge[quality]"') from None
    return rensa


def signatures(texts: Sequence[str]) -> npt.NDArray[np.uint32]:
    """(n, 128) uint32: the MinHash of each text."""
    rensa = minhash_library()
    result = np.empty((len(texts), PERMUTATIONS), np.uint32)
    for i, text in enumerate(texts):
        found = words(text)
        shingles = ["\0".join(found[k : k + SHINGLE]) for k in range(max(1, len(found) - SHINGLE + 1))]
        minhash = rensa.RMinHash(num_perm=PERMUTATIONS, seed=SEED)
        minhash.update(shingles)
        result[i] = minhash.digest()
    return result


def exact_duplicates(hashes: npt.NDArray[np.uint64], position: npt.NDArray[np.int64], wanted: Flags) -> Flags:
    """Which documents have the hash ((n, 2) uint64) of one at an earlier `position`; only `wanted` ones
    count. Those at one position are parts of one.
    """
    candidates = np.flatnonzero(wanted)
    own = hashes[candidates]
    order = np.lexsort((position[candidates], own[:, 1], own[:, 0]))
    begins = np.append(True, (own[order][1:] != own[order][:-1]).any(axis=1))[: len(order)]
    ordered = candidates[order]
    result = np.zeros(len(wanted), np.bool_)
    result[ordered[position[ordered] != position[ordered[_firsts(begins)]]]] = True
    return result


class Signatures:
    """The MinHashes of all shards, (n, 128) uint32 files, read where they are needed."""

    def __init__(self, paths: Sequence[Path], counts: Sequence[int]) -> None:
        self.paths, self.ends = list(paths), np.cumsum([0, *counts])

    def band(self, number: int) -> npt.NDArray[np.uint64]:
        """(n,) uint64: a hash of band `number` of every document."""
        width = PERMUTATIONS // BANDS
        parts = []
        for path in self.paths:
            table = np.fromfile(path, "<u4").reshape(-1, PERMUTATIONS)[
                :, number * width : (number + 1) * width
            ]
            total = np.zeros(len(table), np.uint64)
            for column in range(width):
                total = keys(column, total ^ table[:, column].astype(np.uint64))
            parts.append(total)
        return np.concatenate(parts) if parts else np.zeros(0, np.uint64)

    def rows(self, documents: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """The signatures of some documents."""
        result = np.empty((len(documents), PERMUTATIONS), np.uint32)
        shard = np.searchsorted(self.ends, documents, side="right") - 1
        for one in np.unique(shard).tolist():
            mine = shard == one
            table = np.memmap(self.paths[one], "<u4", "r").reshape(-1, PERMUTATIONS)
            result[mine] = table[documents[mine] - self.ends[one]]
        return result


def near_duplicates(found: Signatures, position: npt.NDArray[np.int64], wanted: Flags) -> Flags:
    """Which documents nearly equal one at an earlier `position`, in some band; only `wanted` ones count."""
    result = np.zeros(len(wanted), np.bool_)
    for number in range(BANDS):
        candidates = np.flatnonzero(wanted & ~result)
        band = found.band(number)[candidates]
        order = np.lexsort((position[candidates], band))
        begins = np.append(True, band[order][1:] != band[order][:-1])[: len(order)]
        first = candidates[order[_firsts(begins)]]
        later = np.flatnonzero(position[candidates[order]] != position[first])
        for some in np.array_split(later, max(1, len(later) // 50_000)):
            documents = candidates[order[some]]
            agreement = (found.rows(documents) == found.rows(first[some])).mean(axis=1)
            result[documents[agreement >= AGREEMENT]] = True
    return result


def _firsts(begins: Flags) -> npt.NDArray[np.int64]:
    """(n,) the number of the first of the group of each, where groups follow one another and `begins` marks their firsts."""
    return np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))
