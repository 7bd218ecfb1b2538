"""The processes of a run: how they meet, and who ended when one is gone."""

import gc
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from llmforge.backends.base import World
from llmforge.errors import UserError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)
SECONDS_TO_DIE = 3.0


def world_from_environment() -> World:
    """What torchrun (or `colossalai run`) says about this process; a world of one where nobody says
    anything.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    return World(rank, size, rank, size)


def join_processes(device: torch.device, process_group: str = "cpu:gloo,cuda:nccl") -> World:
    """Joins the process group of the launcher; `UserError` where it cannot be made.

    `process_group` is its name in torch on GPUs. PyTorch's engines also need one for tensors of the host. ColossalAI asks
    a group for its name, and in pipelines receives into host memory unless that is NCCL alone.
    """
    world = world_from_environment()
    if world.size == 1 or dist.is_initialized():
        return world
    backend = process_group if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
    except (dist.DistError, RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"the processes could not connect at {address} ({' '.join(str(error).split())[:200]}); "
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


def over_ranks(number: int, how: Any, group: Any) -> int:
    """Collective: the sum (`dist.ReduceOp.SUM`) or the largest of the numbers of all ranks of `group`."""
    box = torch.tensor(number)
    dist.all_reduce(box, how, group=group)
    return int(box)


class Processes:
    """Who the ranks are, so that a rank that dies can be named by the others."""

    def __init__(self, world: World) -> None:
        self.world = world
        mine = (socket.gethostname(), os.getpid())
        self.all: list[Any] = [mine]
        if world.size > 1:
            self.all = [None] * world.size
            dist.all_gather_object(self.all, mine)

    def gather(self, value: Any) -> list[Any]:
        """Collective: the `value` (JSON) of every rank, in the order of ranks."""
        values = [value] * self.world.size
        if self.world.size > 1:
            dist.all_gather_object(values, value)
        return values

    def from_main(self, make: Callable[[], T]) -> T:
        """Collective: what `make` returns on rank 0, or the `UserError` that it raises there, on every rank."""
        if self.world.size == 1:
            return make()
        box: list[Any] = [None, None]
        if self.world.is_main:
            try:
                box[0] = make()
            except UserError as error:
                box[1] = str(error)
        dist.broadcast_object_list(box, 0)
        if box[1] is not None:
            raise UserError(box[1])
        made: T = box[0]
        return made

    def name(self, rank: int) -> str:
        host, process = self.all[rank]
        return f"rank {rank} (process {process} on {host})"

    @contextmanager
    def naming_the_lost(self) -> Iterator[None]:
        """Makes a sentence of a collective call that fails because another process is gone."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or not (lost := self.lost()):
                raise
            raise UserError(
                f"{lost} ended, so rank {self.world.rank} stops too; --load-checkpoint latest resumes from the last "
                f"checkpoint ({' '.join(str(error).split())[:120]})."
            ) from error

    def lost(self) -> str | None:
        """Who ended, None where all ranks are on this host and run."""
        if self.world.size == 1:
            return None
        host = socket.gethostname()
        # The connection of a process that is killed breaks before the process is gone.
        deadline = time.monotonic() + SECONDS_TO_DIE
        while time.monotonic() < deadline:
            ended = [
                self.name(rank)
                for rank, (name, pid) in enumerate(self.all)
                if name == host and not alive(pid)
            ]
            if ended:
                return ", ".join(ended)
            time.sleep(0.1)
        return "a rank on another host" if {name for name, _ in self.all} != {host} else None


def alive(process: int) -> bool:
    """Whether a process of this host still runs (one that only waits to be reaped does not)."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")
