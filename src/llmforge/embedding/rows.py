"""New rows of an embedding or head: what the old rows are like, and how rows are mixed from them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from llmforge.weights.floats import Float32, storage_dtype, to_float32
from llmforge.weights.tensor import Tensor

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]

UNTRAINED_NORM = 0.1

# Gives the new rows `start` to `stop` (counted from the first new row) as float32 [stop - start, row length].
# Asked for in ascending, gapless ranges.
Filler = Callable[[int, int], Float32]


@dataclass(frozen=True)
class NewRows:
    """The new rows of one tensor; `by_subtokens` is how many of them are made from their sub-tokens since the
    initialization knows nothing of them, None where that cannot be.
    """

    fill: Filler
    by_subtokens: int | None = None


@dataclass(frozen=True)
class OldRows:
    """The trained rows of one tensor: `mean` float32 [row length] over those that are `usable`, `norms`
    float32 [rows].

    A row is unusable if it is zero or not finite; `untrained` rows have less than a tenth of the median norm,
    or equal another row bit for bit, as rows do that no text ever reached (https://arxiv.org/abs/2405.05417).
    """

    tensor: Tensor
    mean: Float32
    norms: Float32
    usable: Bool
    zero: Int64
    not_finite: Int64
    untrained: Int64

    @property
    def median_norm(self) -> float:
        return float(np.median(self.norms[self.usable])) if self.usable.any() else 0.0

    def blocks(self) -> Iterator[Float32]:
        """The usable rows, in blocks."""
        for first, block in self.tensor.blocks(len(self.usable)):
            yield block[self.usable[first : first + len(block)]]

    @cached_property
    def covariance(self) -> npt.NDArray[np.float64]:
        """float64 [row length, row length], over the usable rows."""
        total = np.zeros((len(self.mean), len(self.mean)))
        for block in self.blocks():
            centred = block - self.mean
            total += centred.T @ centred
        return total / max(int(self.usable.sum()), 1)


def look_at(tensor: Tensor, count: int) -> OldRows:
    """Reads the first `count` rows of `tensor` once, in blocks."""
    width = tensor.row_bytes // storage_dtype(tensor.dtype).itemsize
    directions = np.random.default_rng(0).standard_normal((2, width)).astype(np.float32)
    norms = np.empty(count, np.float32)
    marks = np.empty((count, 2), np.float32)
    total, number = np.zeros(width), 0
    for first, block in tensor.blocks(count):
        here = slice(first, first + len(block))
        with np.errstate(invalid="ignore", over="ignore"):
            norms[here] = np.sqrt(np.einsum("ij,ij->i", block, block))
            for k, direction in enumerate(directions):
                marks[here, k] = np.einsum("ij,j->i", block, direction)
        good = np.isfinite(norms[here]) & (norms[here] > 0)
        total += (block if good.all() else block[good]).sum(axis=0, dtype=np.float64)
        number += int(good.sum())
    finite = np.isfinite(norms)
    usable = finite & (norms > 0)
    untrained = usable & (norms < UNTRAINED_NORM * (np.median(norms[usable]) if number else 0))
    if width > 1:  # equal rows have equal marks (64 bits), and others hardly ever
        _, inverse, counts = np.unique(marks.view(np.uint64)[:, 0], return_inverse=True, return_counts=True)
        untrained |= usable & (counts[inverse] > 1)
    return OldRows(
        tensor=tensor,
        mean=(total / max(number, 1)).astype(np.float32),
        norms=norms,
        usable=usable,
        zero=np.flatnonzero(finite & (norms == 0)),
        not_finite=np.flatnonzero(~finite),
        untrained=np.flatnonzero(untrained),
    )


@dataclass(frozen=True)
class Mixture:
    """New rows as weighted sums of old ones: row i is the sum of `weights[j] * old[ids[j]]` over
    `offsets[i] <= j < offsets[i + 1]`; the mean of the old rows where that range is empty.

    offsets int64 [rows + 1], ids int32 and weights float32 of equal length.
    """

    offsets: Int64
    ids: Int32
    weights: Float32

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def empty(self) -> Int64:
        """The new rows that nothing is mixed into."""
        return np.flatnonzero(np.diff(self.offsets) == 0)

    @staticmethod
    def of_lists(lists: list[list[int]]) -> "Mixture":
        """Equal weights that sum to one within each list of old ids."""
        counts = np.array([len(ids) for ids in lists], np.int64)
        ids = np.array([i for ids in lists for i in ids], np.int32)
        weights = np.repeat(1 / np.maximum(counts, 1), counts).astype(np.float32)
        return Mixture(np.concatenate([[0], np.cumsum(counts)]), ids, weights)

    def first(self) -> "Mixture":
        """The first old row of each new row, alone."""
        full = np.diff(self.offsets) > 0
        ids = self.ids[self.offsets[:-1][full]]
        return Mixture(np.concatenate([[0], np.cumsum(full)]), ids, np.ones(len(ids), np.float32))

    def without(self, usable: Bool) -> "Mixture":
        """Leaves out the old rows that are not `usable`, the other weights of a new row scaled to the same
        sum.
        """
        keep = usable[self.ids]
        if keep.all():
            return self
        row = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        before = np.bincount(row, self.weights, len(self))
        after = np.bincount(row[keep], self.weights[keep], len(self))
        scale = np.divide(before, after, out=np.zeros_like(before), where=after != 0)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(row[keep], minlength=len(self)))])
        return Mixture(offsets, self.ids[keep], (self.weights[keep] * scale[row[keep]]).astype(np.float32))

    def filled_from(self, other: "Mixture") -> "Mixture":
        """Takes from `other` the rows that are empty here."""
        take = np.diff(self.offsets) == 0
        counts = np.where(take, np.diff(other.offsets), np.diff(self.offsets))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        origin = np.where(take, other.offsets[:-1], self.offsets[:-1])
        index = np.repeat(origin, counts) + position
        theirs = np.repeat(take, counts)
        ids, weights = np.empty(len(index), np.int32), np.empty(len(index), np.float32)
        ids[theirs], weights[theirs] = other.ids[index[theirs]], other.weights[index[theirs]]
        ids[~theirs], weights[~theirs] = self.ids[index[~theirs]], self.weights[index[~theirs]]
        return Mixture(offsets, ids, weights)

    def filler(self, old: OldRows) -> Filler:
        """The rows mixed from `old`."""
        mixture = self.without(old.usable)
        stored = old.tensor.array().reshape(old.tensor.rows, -1)
        width = stored.shape[1]

        def fill(start: int, stop: int) -> Float32:
            begins = mixture.offsets[start:stop]
            counts = np.diff(mixture.offsets[start : stop + 1])
            rows = np.zeros((stop - start, width), np.float32)
            rows[counts == 0] = old.mean
            for term in range(counts.max(initial=0)):  # of all rows at once
                here = np.flatnonzero(counts > term)
                j = begins[here] + term
                gathered = to_float32(stored[mixture.ids[j]], old.tensor.dtype)
                gathered *= mixture.weights[j][:, None]
                rows[here] += gathered
            return rows

        return fill


def replaced(filler: Filler, rows: Float32, known: Bool) -> Filler:
    """`rows` [new tokens, row length] where they are `known` [new tokens], and what `filler` gives elsewhere."""

    def fill(start: int, stop: int) -> Float32:
        made = filler(start, stop)
        here = known[start:stop]
        made[here] = rows[start:stop][here]
        return made

    return fill


def with_median_norm(filler: Filler, old: OldRows) -> Filler:
    """Scales every row of `filler` to the median norm of the old rows."""

    def fill(start: int, stop: int) -> Float32:
        rows = filler(start, stop)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        scaled: Float32 = rows * np.divide(old.median_norm, norms, out=np.ones_like(norms), where=norms > 0)
        return scaled

    return fill
