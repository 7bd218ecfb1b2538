"""The native engine on several processes: DDP, where every rank holds the model, and FSDP2, where ranks
share it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llmforge.backends.base import LossSums, MicroBatch, World
from llmforge.backends.common import attention
from llmforge.backends.common.memory import fits_gathered
from llmforge.backends.common.model import empty_model, load_model
from llmforge.backends.common.processes import TIMEOUT, over_ranks
from llmforge.backends.common.settings import Settings
from llmforge.backends.common.sharded_weights import (
    first_row,
    read_shards,
    reads_as_it_is,
    rewrite_as_in_files,
    send_shards,
    write_shards,
)
from llmforge.backends.common.step import copy_to_cpu
from llmforge.backends.torch.engine import NativeEngine
from llmforge.backends.torch.snapshot import NativeSnapshot
from llmforge.console import say
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.modules import decoder_layers


class _Distributed(NativeEngine):
    """What both have in common: sums over ranks, and a process group of its own for background saving."""

    def __init__(self, settings: Settings, world: World | None = None) -> None:
        # Now, not with the first save: making a group waits for a rank that is dead until the timeout.
        self.saving = dist.new_group(backend="gloo", timeout=TIMEOUT)
        super().__init__(settings, world)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    def _background_group(self) -> Any:
        return self.saving

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
    2304.11277). No rank ever holds the model: it is built without weights, and each reads its own part of the files.
    """

    name = "fsdp"

    def _distribute(self) -> torch.nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(self.device.type, (self.world.size,))
        low = self.dtype if self.dtype != torch.float32 else None
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
        again = not self._keeps_gathered()
        for layer in decoder_layers(self.causal):
            fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=again)
        fully_shard(self.loss, mesh=mesh, mp_policy=policy)
        buffers = [buffer.clone() for _, buffer in self.loss.named_buffers(remove_duplicate=False)]
        self.loss.to_empty(device=self.device)
        for (_, buffer), values in zip(self.loss.named_buffers(remove_duplicate=False), buffers, strict=True):
            buffer.copy_(values)
        if self.files:
            read_shards(self._weights(), self.files, self._local)
        else:
            if self.world.is_main:
                say(f"{self.settings.model}: transformers converts these weights; rank 0 loads them all.")
            send_shards(self._weights(), super()._load, self.world, self._local)
        if self.lora:
            self.lora.begin(self._local)
        return self.loss

    def _keeps_gathered(self) -> bool:
        """The same on all ranks, as the backward pass of all gathers or of none."""
        if self.device.type != "cuda":
            return False
        least = over_ranks(torch.cuda.mem_get_info(self.device)[1], dist.ReduceOp.MIN, self.saving)
        return fits_gathered(self.dtype.itemsize * self.causal.num_parameters(), least)

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> LossSums:
        from torch.distributed.fsdp import FSDPModule

        sums = super().evaluate(micro_batches)
        # What no backward pass follows stays gathered: the embeddings would be those of all ranks, in 16 bits.
        for module in self.loss.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return sums

    def _load(self) -> Any:
        causal = empty_model(self.settings.model, attention.NAMES[self.attention])
        weights = self.settings.model.weights
        self.files = weights if reads_as_it_is(causal, weights) else None
        return causal

    def snapshot(self) -> NativeSnapshot:
        shapes = {name: tuple(tensor.shape) for name, tensor in self._weights().items()}
        return SharedSnapshot(
            weights=self._copied_weights(),
            state=self._copied_state(),
            group=self._background_group(),
            adapter=self._copied_adapter(),
            average=self._copied_average(),
            averaged=self.average is not None,
            shapes=shapes,
            world=self.world,
            causal=self.causal,
        )

    def _read_through_transformers(self, state: dict[str, torch.Tensor], directory: Path) -> None:
        def load() -> Any:
            return load_model(ModelDirectory(directory), attention.NAMES[self.attention])

        send_shards(state, load, self.world, self._local)

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, enabled=False)  # the policy above sets the dtype

    @contextmanager
    def _gradient_sync(self, last: bool) -> Iterator[None]:
        self.module.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield

    def _local(self, tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
        if not hasattr(tensor, "to_local"):
            return tensor, 0
        return tensor.to_local(), first_row(tensor.shape[0], self.world.rank, self.world.size)

    def _whole_norm(self, local: torch.Tensor) -> float:
        return float(self.total(local.double().square()).sqrt())

    def _whole(self, tensor: Any) -> torch.Tensor:
        whole: torch.Tensor = tensor.full_tensor()
        return whole

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

    def _assemble(self, values: torch.Tensor) -> torch.Tensor:
        return self.total(values)


@dataclass(frozen=True, kw_only=True)
class SharedSnapshot(NativeSnapshot):
    """The same where ranks share the model: `weights` are this rank's rows of tensors of `shapes`."""

    shapes: dict[str, tuple[int, ...]]
    world: World
    causal: Any  # for the names of its files alone

    def bytes(self) -> int:
        return over_ranks(self.bytes_here(), dist.ReduceOp.SUM, self.group)

    def write_model(self, directory: Path) -> None:
        self._write(self.weights, directory)

    def write_average(self, directory: Path) -> None:
        self._write(self.average, directory)

    def _write(self, weights: dict[str, torch.Tensor], directory: Path) -> None:
        write_shards(weights, self.shapes, directory, self.world, self.group)
        if self.world.is_main:
            rewrite_as_in_files(self.causal, directory)
