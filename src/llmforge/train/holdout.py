"""Bits per byte on held-out data while a model is trained: the one figure that does not depend on the
vocabulary.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from llmforge.backends.base import Engine, LossSums
from llmforge.dataset.packed import PackedDataset
from llmforge.errors import UserError
from llmforge.train.batches import Groups, MicroBatches, make_micro_batch
from llmforge.train.figures import bits_per_byte
from llmforge.train.options import TrainOptions


class Holdout:
    """Prepared datasets, measured whole and in order."""

    def __init__(self, directories: list[Path], tokenizer_fingerprint: str, old_rows: int) -> None:
        self.data = PackedDataset(directories)
        if self.data.tokenizer_fingerprint != tokenizer_fingerprint:
            raise UserError(
                f"--eval-data {directories[0]} was prepared with another tokenizer than the model's."
            )
        self.groups = Groups(tuple(self.data.categories), old_rows)
        self.bytes = np.zeros(len(self.groups.categories))
        for start in range(0, len(self.data), 1024):
            for row in self.data.rows(range(start, min(start + 1024, len(self.data)))):
                for name, size in zip(row.seq_categories, row.seq_bytes, strict=True):
                    self.bytes[self.groups.categories.index(name)] += size

    def measure(
        self, engine: Engine, config: TrainOptions, stop: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Bits per byte by category, and of all; None where `stop`, which is asked after each batch, says so."""
        micro, across = config.micro_batch_size, config.cross_document_attention
        split = MicroBatches(micro, len(self.data))
        total: LossSums | None = None
        for indices in split.of_rank(np.arange(len(self.data)), engine.world):
            rows = self.data.rows(indices) if len(indices) else []
            sums = engine.evaluate([make_micro_batch(rows, micro, self.data.max_length, self.groups, across)])
            total = sums if total is None else LossSums(total.loss + sums.loss, total.tokens + sums.tokens)
            if stop():
                return None
        assert total is not None
        count = self.groups.count
        return bits_per_byte(LossSums(total.loss[:count], total.tokens[:count]), self.groups, self.bytes)
