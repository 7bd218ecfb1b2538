"""The processes of a run: how they meet, and who ended when one is gone."""

import gc
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llmforge.engine.protocol import World
from llmforge.errors import UserError

TIMEOUT = timedelta(minutes=30)


def world_from_environment() -> World:
    """What torchrun (or `colossalai run`) says about this process; a world of one where nobody says
    anything.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    return World(rank, size, rank, size)


def join_processes(device: torch.device, family: str = "native") -> World:
    """Joins the process group of the launcher; `UserError` where it cannot be made.

    On GPUs the native engines' group also takes tensors of the host. ColossalAI asks a group for its backend's
    name, and in pipelines receives into host memory unless that is NCCL alone.
    """
    world = world_from_environment()
    if world.size == 1 or dist.is_initialized():
        return world
    backend = (
        {"native": "cpu:gloo,cuda:nccl", "colossal": "nccl"}[family] if device.type == "cuda" else "gloo"
    )
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
    except (dist.DistError, RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"the processes could not meet at {address} ({' '.join(str(error).split())[:200]}); "
            "if the port is in use, give torchrun another --master-port."
        ) from error
    return world


def leave_processes() -> None:
    """Leaves the process group, if there is one: a thread of it that is left running can abort the process."""
    if dist.is_initialized():
        gc.collect()  # ColossalAI's plugins leave their own groups when they are deleted
        dist.destroy_process_group()


def agree(fine: bool, group: Any) -> bool:
    """Collective: whether all ranks of `group` are fine."""
    flag = torch.tensor(int(fine))
    dist.all_reduce(flag, dist.ReduceOp.MIN, group=group)
    return bool(flag)


class Processes:
    """Who the ranks are, so that a rank that dies can be named by the others."""

    def __init__(self, world: World) -> None:
        self.world = world
        mine = (socket.gethostname(), os.getpid())
        self.all: list[Any] = [mine]
        if world.size > 1:
            self.all = [None] * world.size
            dist.all_gather_object(self.all, mine)

    def describe_loss(self, error: Exception) -> UserError:
        """The sentence for a collective call that failed because another process is gone."""
        host = socket.gethostname()
        dead = [
            f"rank {r} (process {pid} on {h})"
            for r, (h, pid) in enumerate(self.all)
            if h == host and not alive(pid)
        ]
        who = ", ".join(dead) or "a rank on another host"
        return UserError(
            f"{who} ended, so rank {self.world.rank} stops too; --load-checkpoint latest goes on from the last checkpoint "
            f"({' '.join(str(error).split())[:120]})."
        )


def alive(process: int) -> bool:
    """Whether a process of this host still runs (one that only waits to be reaped does not)."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")
