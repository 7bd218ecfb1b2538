"""The batch of the next step, read while the engine works on this one."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmforge.backends.base import MicroBatch
from llmforge.train.batches import MicroBatches, make_micro_batch
from llmforge.train.options import TrainOptions
from llmforge.train.sampler import Sampler
from llmforge.train.setup import Setup


@dataclass(frozen=True)
class Batch:
    """What one optimizer step reads.

    `rows` (n,) are the numbers of the rows of all ranks; the rest is this rank's: `micro_batches`, the UTF-8 `bytes` of
    its documents, and `new_tokens`, those that occur, numbered from 0. `epoch` is the one that they belong to, `after`
    the sampler's state behind them.
    """

    rows: np.ndarray
    micro_batches: list[MicroBatch]
    bytes: int
    new_tokens: np.ndarray
    epoch: int
    after: Mapping[str, Any]


class Batches:
    """Batches in the order of `sampler`, at most one of them in advance.

    The sampler and the files are used by one thread alone. What it raises is raised by `next`, for the batch that was
    asked for.
    """

    def __init__(self, config: TrainOptions, setup: Setup, sampler: Sampler, split: MicroBatches) -> None:
        self.config, self.setup, self.sampler, self.split = config, setup, sampler, split
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="reading")
        self._pending: Future[Batch] | None = None

    def next(self, *, more: bool) -> Batch:
        """The next batch; with `more` the one behind it begins to be read."""
        pending = self._pending or self._pool.submit(self._read)
        self._pending = None
        batch = pending.result()
        if more:
            self._pending = self._pool.submit(self._read)
        return batch

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _read(self) -> Batch:
        config, setup, old_rows = self.config, self.setup, self.setup.vocabulary.source
        # By what was read, and not by the number of the step, which a rollback sets back.
        self.sampler.reweight(config.weights(self.sampler.steps(self.split.rows_per_step)))
        epoch = self.sampler.epoch
        rows = self.sampler.next(self.split.rows_per_step)
        micro_batches, byte_count, ids = [], 0, [np.zeros(0, dtype=np.int32)]
        for indices in self.split.of_rank(rows, setup.engine.world):
            read = setup.data.rows(indices) if len(indices) else []
            byte_count += sum(int(row.seq_bytes.sum()) for row in read)
            ids += [row.input_ids[row.input_ids >= old_rows] for row in read]
            micro_batches.append(
                make_micro_batch(
                    read,
                    micro=self.split.micro,
                    length=setup.data.max_length,
                    groups=setup.groups,
                    cross_document=config.cross_document_attention,
                )
            )
        new = np.unique(np.concatenate(ids)).astype(np.int64) - old_rows
        return Batch(rows, micro_batches, byte_count, new, epoch, self.sampler.state_dict())
