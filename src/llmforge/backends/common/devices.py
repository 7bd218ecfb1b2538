"""Devices by name: what they could compute, what a training attains of it, and what they hold."""

import time
from dataclasses import dataclass, replace

from llmforge.errors import UsageError
from llmforge.weights.memory import total_memory

ATTAINED = 0.40  # model FLOPs utilization that dense training of 1 B parameters and up reaches on one GPU
# The same against the products measured below: norms, softmax, attention and the optimizer take the rest
# (benchmarks/training.py compares).
CPU_ATTAINED = 0.58
GB = 1_000_000_000
CPU_HEAD_CHUNK, LARGEST_HEAD_CHUNK = 512, 8192
HEAD_BYTES = 700_000_000  # with the matrix of 69,104 x 2,048 in bf16 less than 1 GB


@dataclass(frozen=True)
class Device:
    """`bf16` and `fp32` are FLOP/s of dense products (fp32 on a GPU: TF32); `memory` in bytes, `bandwidth` that of its
    memory in bytes/s, 0 where it is not known.
    """

    name: str
    bf16: float
    fp32: float
    memory: int
    bandwidth: float = 0.0
    is_cpu: bool = False

    @property
    def bf16_is_fast(self) -> bool:
        return self.bf16 > self.fp32

    def peak(self, precision: str) -> float:
        return self.fp32 if precision == "fp32" else self.bf16

    def attainable(self, precision: str) -> float:
        """FLOP/s that a training may hope for."""
        return self.peak(precision) * (CPU_ATTAINED if self.is_cpu else ATTAINED)


# NVIDIA's data sheets of A100 (1758950), H100, H200, L40S and V100, its paper on the Ada architecture for the RTX 4090; dense,
# without sparsity. A800 and H800 differ from A100 and H100 in their links (and float64) alone.
KNOWN = {
    "a100-40gb": Device("a100-40gb", 312e12, 156e12, 40 * GB, 1.555e12),
    "a100-80gb": Device("a100-80gb", 312e12, 156e12, 80 * GB, 2.039e12),
    "a100-80gb-pcie": Device("a100-80gb-pcie", 312e12, 156e12, 80 * GB, 1.935e12),
    "a800-80gb": Device("a800-80gb", 312e12, 156e12, 80 * GB, 2.039e12),
    "a800-80gb-pcie": Device("a800-80gb-pcie", 312e12, 156e12, 80 * GB, 1.935e12),
    "h100": Device("h100", 989e12, 494e12, 80 * GB, 3.35e12),
    "h800": Device("h800", 989e12, 494e12, 80 * GB, 3.35e12),
    "h100-pcie": Device("h100-pcie", 756e12, 378e12, 80 * GB, 2.0e12),
    "h100-nvl": Device("h100-nvl", 835e12, 417e12, 94 * GB, 3.9e12),
    "h200": Device("h200", 989e12, 494e12, 141 * GB, 4.8e12),
    "l40s": Device("l40s", 362e12, 183e12, 48 * GB, 0.864e12),
    "rtx-4090": Device("rtx-4090", 165e12, 82e12, 24 * GB, 1.008e12),
    "v100-32gb": Device("v100-32gb", 125e12, 15.7e12, 32 * GB, 0.9e12),
}

# The names that CUDA gives them, whole: a part of a name fits other GPUs (RTX 3060, GH200, RTX A1000, slices by MIG).
CUDA_NAMES = {
    "A100-SXM4-40GB": "a100-40gb",
    "A100-PCIE-40GB": "a100-40gb",
    "A100-SXM4-80GB": "a100-80gb",
    "A100 80GB PCIe": "a100-80gb-pcie",
    "A800-SXM4-80GB": "a800-80gb",
    "A800 80GB PCIe": "a800-80gb-pcie",
    "H100 80GB HBM3": "h100",
    "H100 PCIe": "h100-pcie",
    "H100 NVL": "h100-nvl",
    "H800": "h800",
    "H200": "h200",
    "L40S": "l40s",
    "GeForce RTX 4090": "rtx-4090",
    "Tesla V100-SXM2-32GB": "v100-32gb",
    "Tesla V100-SXM3-32GB": "v100-32gb",
}


def by_name(name: str) -> Device:
    """The device that `--device name` means; `this` is this machine, measured for half a second."""
    if name == "this":
        return this_device()
    if name.lower() not in KNOWN:
        raise UsageError(f"--device {name}: must be this or one of {', '.join(KNOWN)}.")
    return KNOWN[name.lower()]


def gpu_device(full_name: str, memory: int) -> Device | None:
    """The entry for the whole name that CUDA gives a GPU, with the memory it really has; None for all others, of
    which nothing is known.
    """
    found = CUDA_NAMES.get(full_name.removeprefix("NVIDIA ").strip())
    if found is None:
        return None
    return replace(KNOWN[found], name=full_name, memory=memory)


def this_device() -> Device:
    """The machine at hand: its GPU if it is a known one, else products timed here and now."""
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        if known := gpu_device(torch.cuda.get_device_name(0), memory):
            return known
        name, memory = torch.cuda.get_device_name(0), memory
        return Device(name, measure("cuda", torch.bfloat16), measure("cuda", torch.float32), memory)
    memory = total_memory()
    threads = torch.get_num_threads()
    return Device(
        f"this CPU ({threads} threads)",
        measure("cpu", torch.bfloat16),
        measure("cpu", torch.float32),
        memory,
        is_cpu=True,
    )


def head_chunk(vocabulary: int, low: int, on_cpu: bool) -> int:
    """How many tokens go through a head of `vocabulary` rows at a time, where the user does not say; products have `low`
    bytes a number.

    Each chunk reads the whole matrix and adds to its whole gradient. On a GPU that takes longer than computing as long as
    chunks are small (docs/performance.md), so there they are as large as `HEAD_BYTES` allow for logits in float32 and
    the products that they come from; on a CPU computing always takes longer.
    """
    if on_cpu:
        return CPU_HEAD_CHUNK
    return min(max(HEAD_BYTES // (vocabulary * (4 + low)) // 256 * 256, 256), LARGEST_HEAD_CHUNK)


def keep_freed_memory() -> None:
    """Has the C library keep what tensors give back, for those of the next step.

    A tensor of more than 32 MB (a head's gradient, a chunk of logits) is otherwise mapped and unmapped each time, and
    the system clears every page of it: a sixth of a step on a CPU. Where the library has no such setting (musl,
    macOS) nothing changes.
    """
    import ctypes

    trim_threshold, mmap_threshold = -1, -3  # of glibc's malloc.h
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(trim_threshold, 1 << 28)
        library.mallopt(mmap_threshold, 1 << 28)


def measure(device: str, dtype: object, seconds: float = 0.25) -> float:
    """FLOP/s of products of the shapes of a layer (2,048 tokens, width 576 to 1,536)."""
    import torch

    width, inner = (576, 1536) if device == "cpu" else (4096, 11008)
    x, w = (torch.randn(n, width, device=device).to(dtype) for n in (2048, inner))  # type: ignore[call-overload]
    (x @ w.T).sum().item()
    # The fastest of many: what else the machine does at the moment is not its speed.
    fastest, ends = float("inf"), time.perf_counter() + seconds
    while (began := time.perf_counter()) < ends:
        (x @ w.T)[0, 0].item()
        fastest = min(fastest, time.perf_counter() - began)
    return 2.0 * 2048 * width * inner / fastest
