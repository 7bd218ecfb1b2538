"""Parts of documents, given by where they begin and end."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Spans:
    """`begins` and `ends` (m,) int64 in their document; those of document i are `offsets[i]` to `offsets[i + 1]` (n + 1,).

    Those of a document rise, and no two of them touch.
    """

    offsets: Int64
    begins: Int64
    ends: Int64

    @staticmethod
    def none(documents: int) -> "Spans":
        nothing = np.zeros(0, np.int64)
        return Spans(np.zeros(documents + 1, np.int64), nothing, nothing)

    @staticmethod
    def leading(lengths: Int64) -> "Spans":
        """The beginning of each document, of so many bytes (or tokens); none where that is 0."""
        ends = lengths[lengths > 0].astype(np.int64)
        return Spans(np.append(0, np.cumsum(lengths > 0)), np.zeros(len(ends), np.int64), ends)

    @staticmethod
    def of(documents: Sequence[Sequence[tuple[int, int]]]) -> "Spans":
        """(begin, end) pairs of each document."""
        flat = np.array([pair for pairs in documents for pair in pairs], np.int64).reshape(-1, 2)
        return Spans(np.append(0, np.cumsum([len(pairs) for pairs in documents])), flat[:, 0], flat[:, 1])

    def __len__(self) -> int:
        return len(self.begins)

    @property
    def counts(self) -> Int64:
        """(n,) int64: how many each document has."""
        counts: Int64 = np.diff(self.offsets)
        return counts

    @property
    def documents(self) -> Int64:
        """(m,) int64: the document of each."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts)

    def take(self, order: Int64) -> "Spans":
        """Those of the documents with these numbers, in this order."""
        counts = self.counts[order]
        offsets = np.append(0, np.cumsum(counts))
        which = np.arange(offsets[-1]) + np.repeat(self.offsets[order] - offsets[:-1], counts)
        return Spans(offsets, self.begins[which], self.ends[which])

    def pairs(self, document: int) -> Iterator[tuple[int, int]]:
        """(begin, end) of those of one document."""
        which = slice(self.offsets[document], self.offsets[document + 1])
        yield from zip(self.begins[which].tolist(), self.ends[which].tolist(), strict=True)
