"""The native engine on several processes: DDP, where every rank holds the model, and FSDP2, where ranks
share it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from llmforge.engine.native.engine import NativeEngine
from llmforge.engine.processes import TIMEOUT
from llmforge.engine.step import copy_to_cpu


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
