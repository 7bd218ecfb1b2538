"""Between the host and the device: copies for which the host does not wait, and the one for which it does."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from llmforge.backends.base import MicroBatch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on `device` for which the host does not wait: a GPU reads it from pinned memory by itself."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def batch_to_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """`batch` with what a model and its loss read on `device`."""
    return replace(
        batch,
        input_ids=to_device(batch.input_ids, device),
        targets=to_device(batch.targets, device),
        positions=to_device(batch.positions, device),
        kept=None if batch.kept is None else to_device(batch.kept, device),
        distilled=None if batch.distilled is None else to_device(batch.distilled, device),
    )


def to_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors of one dimension and one dtype on the CPU, by one copy."""
    return list(torch.split(torch.cat(list(tensors)).cpu(), [len(tensor) for tensor in tensors]))
