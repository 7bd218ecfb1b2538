"""What a checkpoint of ColossalAI's engines holds, frozen at one step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llmforge.backends.common import storage
from llmforge.backends.common.peft_files import PeftAdapter
from llmforge.backends.common.processes import agree, over_ranks


def state_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


@dataclass(frozen=True)
class ColossalSnapshot:
    """Copies on the CPU: of the weights (on the main rank), and of this rank's share of the state."""

    weights: dict[str, torch.Tensor]
    state: dict[str, torch.Tensor] | None
    rank: int
    group: Any
    averaged: bool = False
    adapter: PeftAdapter | None = None

    @property
    def adapted(self) -> bool:
        return self.adapter is not None

    def agree(self, fine: bool) -> bool:
        return agree(fine, self.group)

    def bytes(self) -> int:
        return over_ranks(storage.bytes_of(self.weights, self.state), dist.ReduceOp.SUM, self.group)

    def write_model(self, directory: Path) -> None:
        if self.weights:
            storage.write_weights(self.weights, directory)

    def write_average(self, directory: Path) -> None:
        raise AssertionError("ColossalAI's engines keep no average")

    def write_adapter(self, directory: Path) -> None:
        if self.adapter:
            self.adapter.write(directory)

    def write_state(self, directory: Path) -> None:
        from safetensors.torch import save_file

        if self.state is not None:
            save_file(
                {name: t.contiguous() for name, t in self.state.items()},
                str(directory / state_file(self.rank)),
            )
