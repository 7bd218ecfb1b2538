"""What a checkpoint of ColossalAI's engines holds, frozen at one step."""

from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from llmforge.backends.common.processes import over_ranks
from llmforge.backends.common.snapshot import CommonSnapshot


def state_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


@dataclass(frozen=True, kw_only=True)
class ColossalSnapshot(CommonSnapshot):
    """`state` is None on ranks that hold the same share of it as another, which writes it."""

    rank: int
    averaged: bool = False

    def bytes(self) -> int:
        return over_ranks(self.bytes_here(), dist.ReduceOp.SUM, self.group)

    def write_average(self, directory: Path) -> None:
        raise AssertionError("ColossalAI's engines keep no average")

    def write_state(self, directory: Path) -> None:
        from safetensors.torch import save_file

        if self.state is not None:
            save_file(
                {name: t.contiguous() for name, t in self.state.items()},
                str(directory / state_file(self.rank)),
            )
