"""The state of the native engines, frozen at one step."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llmforge.backends.common import storage
from llmforge.backends.common.peft_files import PeftAdapter
from llmforge.backends.common.processes import agree, over_ranks


@dataclass(frozen=True)
class NativeSnapshot:
    """Copies on the CPU: of the weights, their `average` and the `adapter` (on the main rank), and of this rank's share of
    the state.
    """

    weights: dict[str, torch.Tensor]
    state: dict[str, torch.Tensor]
    group: Any = None
    average: dict[str, torch.Tensor] = field(default_factory=dict)
    averaged: bool = False
    adapter: PeftAdapter | None = None

    @property
    def adapted(self) -> bool:
        return self.adapter is not None

    def agree(self, fine: bool) -> bool:
        return fine if self.group is None else agree(fine, self.group)

    def bytes(self) -> int:
        # Every rank has all of the state, and the main rank the weights too.
        mine = storage.bytes_of(self.weights, self.average, self.state)
        return mine if self.group is None else over_ranks(mine, dist.ReduceOp.MAX, self.group)

    def write_model(self, directory: Path) -> None:
        if self.weights:
            storage.write_weights(self.weights, directory)

    def write_average(self, directory: Path) -> None:
        if self.average:
            storage.write_weights(self.average, directory)

    def write_state(self, directory: Path) -> None:
        storage.save_sharded(self.state, directory, self.group)

    def write_adapter(self, directory: Path) -> None:
        if self.adapter:
            self.adapter.write(directory)
