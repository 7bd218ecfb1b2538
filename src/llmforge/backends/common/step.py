"""What an optimizer step of every engine is made of: counts and sums of losses, the loss scale, seeds, groups."""

import random
import resource
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llmforge.backends.base import IGNORED, MicroBatch
from llmforge.backends.common.rates import factors
from llmforge.backends.common.settings import Settings
from llmforge.backends.common.trainable import embedding_parameters, linear_matrices

SCALE_AT_START, SCALE_GROWS_AFTER = 2.0**16, 2000


@dataclass
class LossScale:
    """fp16 only: the loss is scaled so that small gradients survive, and the scale follows what overflows."""

    value: float = 1.0
    steps_without_overflow: int = 0
    dynamic: bool = False

    @classmethod
    def for_precision(cls, precision: str) -> "LossScale":
        return cls(SCALE_AT_START, dynamic=True) if precision == "fp16" else cls()

    def update(self, overflow: bool) -> None:
        if not self.dynamic:
            return
        if overflow:
            self.value, self.steps_without_overflow = max(self.value / 2, 1.0), 0
        else:
            self.steps_without_overflow += 1
            if self.steps_without_overflow == SCALE_GROWS_AFTER:
                self.value, self.steps_without_overflow = self.value * 2, 0


def copy_to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def count_targets(micro_batches: Sequence[MicroBatch]) -> int:
    return sum(int(np.count_nonzero(batch.targets.numpy() != IGNORED)) for batch in micro_batches)


def group_sums(losses: Sequence[torch.Tensor], batches: Sequence[MicroBatch], groups: int) -> torch.Tensor:
    """float64 (2, groups): the summed loss and the number of tokens of every group of micro-batches, from the `losses`
    of all their positions, (rows * length,) each, on the CPU.
    """
    sums = np.zeros((2, groups))
    for values, batch in zip(losses, batches, strict=True):
        valid = batch.targets.numpy().ravel() != IGNORED
        group = batch.groups.numpy().ravel()[valid]
        weights = values.detach().numpy()[valid].astype(np.float64)
        sums[0] += np.bincount(group, weights=weights, minlength=groups)
        sums[1] += np.bincount(group, minlength=groups)
    return torch.from_numpy(sums)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Makes all randomness of a step follow from these three, so that there is no generator state to save."""
    number = hash((seed, step, rank)) & 0x7FFFFFFF
    random.seed(number)
    torch.manual_seed(number)


def optimizer_groups(
    causal: Any, parameters: Iterable[torch.nn.Parameter], settings: Settings
) -> list[dict[str, Any]]:
    """`parameters` by weight decay and by `factor` of the learning rate, those that decay first.

    Norms and biases do not decay, nor embeddings whose old rows must stay, nor matrices of which columns must.
    """
    embeddings = {id(p) for p in embedding_parameters(causal).values()}
    may_decay = settings.decay_embeddings and not settings.trainable.new_rows_only
    protected = linear_matrices(causal).values() if settings.protect is not None else ()
    stay = {id(module.weight) for module in protected}
    of = factors(causal, settings.rates, settings.trainable.new_rows_only)
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        decays = parameter.ndim >= 2 and (may_decay or id(parameter) not in embeddings)
        decays = decays and id(parameter) not in stay
        groups.setdefault((not decays, -of.get(id(parameter), 1.0)), []).append(parameter)
    return [
        {"params": members, "weight_decay": 0.0 if stays else settings.weight_decay, "factor": -factor}
        for (stays, factor), members in sorted(groups.items(), key=lambda one: one[0])
    ]


def peak_memory(device: torch.device) -> int:
    """Peak bytes of memory that this process has used, of its accelerator or of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
