"""Running ColossalAI's plugins on a CPU: real processes, gloo, the same code path, none of its files changed.

ColossalAI asks its accelerator for a device by name and keeps "on the accelerator" and "offloaded to the host"
apart. Here the accelerator calls itself "cuda" and hands out `torch.device("cpu", 0)`, which torch keeps apart
from `torch.device("cpu")`: the first means on the accelerator, the second offloaded. Both are the same memory, so
a rehearsal finds wrong shapes, collectives, files and flags, and no fault of streams and copies.
"""

from contextlib import nullcontext
from typing import Any

import torch

ACCELERATOR = torch.device("cpu", 0)
# Bytes that placement "auto" believes the accelerator to have: small models then move between the two as large ones do.
CAPACITY = 1 << 30
DIFFERENCES = (
    "gloo instead of NCCL",
    "PyTorch's AdamW instead of HybridAdam, the model's own norms instead of apex's",
    "PyTorch's SDPA for attention, one call per document",
    "no streams and no copies for offloading, so their errors are not found",
    "speed and memory are not those of GPUs",
)


def install() -> None:
    """Makes the CPU the accelerator of this process. Called after `compat.install`, before a plugin is made."""
    import colossalai.accelerator.api as api
    from colossalai.accelerator.cpu_accelerator import CpuAccelerator

    if getattr(api._ACCELERATOR, "is_rehearsal", False):
        return

    class RehearsalAccelerator(CpuAccelerator):  # type: ignore[misc]
        """A CPU that answers as a CUDA device does. Streams and events are there, and do nothing."""

        is_rehearsal = True

        def __init__(self) -> None:
            super().__init__()
            self._name = "cuda"

        def get_current_device(self) -> torch.device:
            return ACCELERATOR

        def current_device(self) -> int:
            return 0

        def device_count(self) -> int:
            return 1

        def get_rng_state(self, device: Any = None) -> torch.Tensor:
            return torch.get_rng_state()

        def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
            torch.set_rng_state(state)

        def manual_seed(self, seed: int) -> None:
            torch.manual_seed(seed)

        def set_device(self, device: Any = None) -> None: ...

        def synchronize(self, device: Any = None) -> None: ...

        def empty_cache(self) -> None: ...

        def memory_allocated(self, device: Any = None) -> int:
            return 0

        def max_memory_allocated(self, device: Any = None) -> int:
            return 0

        def Stream(self, *_: Any, **__: Any) -> "Nothing":  # noqa: N802 - the name is ColossalAI's
            return Nothing()

        Event = current_stream = default_stream = Stream

        def set_stream(self, stream: Any) -> None: ...

        def stream(self, stream: Any) -> Any:
            return nullcontext()

    api._ACCELERATOR = RehearsalAccelerator()
    # A method of CUDA tensors alone; ZeRO calls it on every bucket.
    torch.Tensor.record_stream = lambda self, stream: None  # type: ignore
    _teach_chunks()
    _teach_auto_placement()


class Nothing:
    """A stream or an event without a device: every method is there and does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class _OnAccelerator:
    """How Gemini's chunks see `ACCELERATOR`: equal to it, of type "cuda"."""

    type, index = "cuda", 0

    def __eq__(self, other: object) -> bool:
        return other == ACCELERATOR if isinstance(other, torch.device) else isinstance(other, _OnAccelerator)

    def __hash__(self) -> int:
        return hash(ACCELERATOR)


def _seen(device: Any) -> Any:
    return _OnAccelerator() if isinstance(device, torch.device) and device.index is not None else device


def _teach_chunks() -> None:
    """Gemini's chunks branch on `device.type`; memory cannot be pinned without a GPU."""
    from colossalai.zero.gemini.chunk.chunk import Chunk
    from colossalai.zero.gemini.chunk.manager import ChunkManager

    make, shard_move, move = Chunk.__init__, Chunk.shard_move, ChunkManager.move_chunk

    def make_unpinned(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **{**kwargs, "pin_memory": False})
        self.shard_device = _seen(self.shard_device)

    Chunk.__init__ = make_unpinned
    Chunk.shard_move = lambda self, device, *a, **k: shard_move(self, _seen(device), *a, **k)
    ChunkManager.move_chunk = lambda self, chunk, device, *a, **k: move(self, chunk, _seen(device), *a, **k)


def _teach_auto_placement() -> None:
    """Placement "auto" wants to know how much memory the accelerator has, and how much was in use."""
    import colossalai.legacy.utils.memory as memory
    import colossalai.zero.gemini.memory_tracer.memstats_collector as collector
    from colossalai.zero.gemini.chunk.manager import ChunkManager

    make = ChunkManager.__init__
    managers: list[Any] = []

    def make_known(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        managers[:] = [self]

    class ChunkMonitor:
        """The bytes of chunks on the accelerator, where CUDA would count all bytes."""

        def start(self) -> None: ...

        def finish(self) -> int:
            return int(managers[0].total_mem["cuda"])

    ChunkManager.__init__ = make_known
    memory.colo_device_memory_capacity = lambda device: CAPACITY
    collector.SyncCudaMemoryMonitor = ChunkMonitor
