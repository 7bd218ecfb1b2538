"""The text of `--protect-source`: what the trained model must not forget."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llmforge.backends.base import MicroBatch
from llmforge.dataset.packed import PackedDataset
from llmforge.errors import UserError
from llmforge.train.batches import Groups, make_micro_batch

ROWS_READ = 500  # as many samples as in arXiv 2512.04844


class SourceText:
    """Prepared datasets; `UserError` where their tokens are not those of the model."""

    def __init__(self, directories: list[Path], tokenizer_fingerprint: str) -> None:
        self.data = PackedDataset(directories)
        if self.data.tokenizer_fingerprint != tokenizer_fingerprint:
            raise UserError(
                f"--protect-source {directories[0]} was prepared with another tokenizer than the model's."
            )
        if not len(self.data):
            raise UserError(f"--protect-source {directories[0]} has no rows.")

    def batches(self) -> Iterator[MicroBatch]:
        """At most `ROWS_READ` rows, evenly spread, each alone and without padding."""
        groups = Groups(tuple(self.data.categories), 0)
        numbers = np.linspace(0, len(self.data) - 1, min(len(self.data), ROWS_READ)).astype(np.int64)
        for number in numbers:
            (row,) = self.data.rows([number])
            yield make_micro_batch([row], 1, len(row.input_ids), groups, cross_document=False)
