"""The state of the native engines, frozen at one step."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

from llmforge.backends.common import storage
from llmforge.backends.common.processes import over_ranks
from llmforge.backends.common.snapshot import CommonSnapshot


@dataclass(frozen=True, kw_only=True)
class NativeSnapshot(CommonSnapshot):
    """Holds the moving `average` of the weights as well (on the main rank); `averaged`: whether one is kept."""

    state: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor] = field(default_factory=dict)
    averaged: bool = False

    def bytes_here(self) -> int:
        return super().bytes_here() + storage.bytes_of(self.average)

    def bytes(self) -> int:
        # Every rank has all of the state, and the main rank the weights too.
        mine = self.bytes_here()
        return mine if self.group is None else over_ranks(mine, dist.ReduceOp.MAX, self.group)

    def write_average(self, directory: Path) -> None:
        if self.average:
            storage.write_weights(self.average, directory)

    def write_state(self, directory: Path) -> None:
        storage.save_sharded(self.state, directory, self.group)
