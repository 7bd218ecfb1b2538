"""The native engine on several processes: DDP, where every rank holds the model, and FSDP2, where ranks
share it.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llmforge.engine.native.engine import NativeEngine, copy_to_cpu
from llmforge.engine.protocol import World
from llmforge.errors import UserError

TIMEOUT = timedelta(minutes=30)


def world_from_environment() -> World:
    """What torchrun (or `colossalai run`) says about this process; a world of one where nobody says
    anything.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    return World(rank, size, rank, size)


def join_processes(device: torch.device) -> World:
    """Joins the process group of the launcher; `UserError` where it cannot be made."""
    world = world_from_environment()
    if world.size == 1 or dist.is_initialized():
        return world
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
    except (dist.DistError, RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"the processes could not meet at {address} ({' '.join(str(error).split())[:200]}); "
            "if the port is in use, give torchrun another --master-port."
        ) from error
    return world


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


class _Distributed(NativeEngine):
    """What both have in common: sums over ranks, and a process group of its own for background saving."""

    _saving: Any = None

    def total(self, values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    def _background_group(self) -> Any:
        if self._saving is None:
            self._saving = dist.new_group(backend="gloo", timeout=TIMEOUT)
        return self._saving

    def describe(self) -> str:
        return f"{super().describe()}, {self.world.size} processes"

    def close(self) -> None:
        dist.destroy_process_group()


class DDPEngine(_Distributed):
    """Every rank holds the whole model and optimizer; gradients are averaged in the last micro-batch's
    backward.
    """

    name = "ddp"

    def _distribute(self) -> torch.nn.Module:
        device_ids = [self.device] if self.device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(
            self.loss.to(self.device), device_ids=device_ids, gradient_as_bucket_view=True
        )

    @contextmanager
    def _gradient_sync(self, last: bool) -> Iterator[None]:
        if last:
            yield
        else:
            with self.module.no_sync():  # type: ignore[operator]
                yield


class FSDPEngine(_Distributed):
    """Weights, gradients and optimizer are cut along their first dimension, one part per rank (arXiv
    2304.11277).
    """

    name = "fsdp"

    def _distribute(self) -> torch.nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(self.device.type, (self.world.size,))
        low = self.dtype if self.dtype != torch.float32 else None
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
        for layer in self.causal.base_model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(self.loss, mesh=mesh, mp_policy=policy)
        return self.loss

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, enabled=False)  # the policy above sets the dtype

    @contextmanager
    def _gradient_sync(self, last: bool) -> Iterator[None]:
        self.module.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield

    def _local(self, tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
        # fully_shard cuts as torch.chunk does: parts of equal size, the last ones shorter or empty.
        part = -(-tensor.shape[0] // self.world.size)
        return tensor.to_local(), min(part * self.world.rank, tensor.shape[0])  # type: ignore[attr-defined]

    def _whole_norm(self, local: torch.Tensor) -> float:
        return float(self.total(local.double().square().cpu()).sqrt())

    def _whole(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()

    def _copy(self, tensor: Any) -> torch.Tensor:
        if not hasattr(tensor, "to_local"):
            return copy_to_cpu(tensor)
        from torch.distributed.tensor import DTensor

        local = copy_to_cpu(tensor.to_local())
        return DTensor.from_local(
            local,
            tensor.device_mesh,
            tensor.placements,
            run_check=False,
            shape=tensor.shape,
            stride=tensor.stride(),
        )

    def _share_of(self, parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        local, first = self._local(parameter)
        return whole[first : first + len(local)]

    def _assemble(self, values: torch.Tensor) -> torch.Tensor:
        return self.total(values)
