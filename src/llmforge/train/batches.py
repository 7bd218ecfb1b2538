"""Rows of a dataset as micro-batches: which rank reads which row in which step, and what each position has to
predict.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llmforge.backends.base import IGNORED, MicroBatch, World


@dataclass(frozen=True)
class Groups:
    """Every target belongs to one of `2 * len(categories)` groups: its category, and whether its token is
    new.
    """

    categories: tuple[str, ...]
    old_rows: int

    @property
    def count(self) -> int:
        return 2 * len(self.categories)

    def label(self, group: int) -> tuple[str, bool]:
        """(category, whether the tokens are new)."""
        return self.categories[group // 2], bool(group % 2)


@dataclass(frozen=True)
class MicroBatches:
    """How the rows of a step are divided among data ranks, in micro-batches of `micro` rows.

    Micro-batch k of rank r holds rows `(k * ranks + r) * micro` and following of the step, so the rows of a
    step do not depend on the number of ranks. Where a short step leaves a rank without rows, it gets an empty
    micro-batch: every rank must make the same number of calls.
    """

    micro: int
    rows_per_step: int

    def of_rank(self, rows: np.ndarray, world: World) -> list[np.ndarray]:
        """The indices of each micro-batch of this rank, out of the indices `rows` (n,) of one step."""
        count = -(-len(rows) // (self.micro * world.data_size))
        starts = [(k * world.data_size + world.data_rank) * self.micro for k in range(count)]
        return [rows[start : start + self.micro] for start in starts]


def make_micro_batch(
    rows: Sequence[Any], micro: int, length: int, groups: Groups, cross_document: bool
) -> MicroBatch:
    """`rows` (as `PackedDataset.rows` gives them) padded with token 0 to `micro` rows of `length` tokens.

    Nothing learns from padding: it follows every token that could see it, and has no targets.
    """
    input_ids = np.zeros((micro, length), dtype=np.int64)
    targets = np.full((micro, length), IGNORED, dtype=np.int64)
    positions = np.tile(np.arange(length, dtype=np.int64), (micro, 1))
    group = np.zeros((micro, length), dtype=np.int64)
    lengths, padded = [], [False] * micro
    for i in range(micro):
        if i >= len(rows):
            lengths.append((length,))
            continue
        row = rows[i]
        size = len(row.input_ids)
        document_lengths = np.asarray(row.seq_lengths, dtype=np.int64)
        starts = np.cumsum(document_lengths) - document_lengths
        input_ids[i, :size] = row.input_ids
        targets[i, : size - 1] = row.labels[1:]
        numbers = np.array([groups.categories.index(name) for name in row.seq_categories], dtype=np.int64)
        group[i, :size] = 2 * np.repeat(numbers, document_lengths)
        # A position's group is that of the document of the token it predicts.
        group[i, : size - 1] = group[i, 1:size]
        group[i] += targets[i] >= groups.old_rows
        if cross_document:
            lengths.append((length,))
            continue
        positions[i, :size] -= np.repeat(starts, document_lengths)
        positions[i, size:] -= size
        targets[i, starts[1:] - 1] = IGNORED
        padded[i] = size < length
        lengths.append((*map(int, document_lengths), *((length - size,) if padded[i] else ())))
    as_tensor = torch.from_numpy
    return MicroBatch(
        as_tensor(input_ids),
        as_tensor(targets),
        as_tensor(positions),
        as_tensor(group),
        tuple(lengths),
        tuple(padded),
        as_tensor(np.flatnonzero(targets != IGNORED)),
    )
