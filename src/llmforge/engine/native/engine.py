"""The native engine: accumulation, precision, clipping and the optimizer around one causal model."""

import math
import random
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from llmforge.engine import attention
from llmforge.engine.native import storage
from llmforge.engine.native.model import CausalLoss, load_model
from llmforge.engine.protocol import IGNORED, Accept, LossSums, MicroBatch, StepResult, World
from llmforge.engine.trainable import Trainable, embedding_parameters, freeze

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SCALE_AT_START, SCALE_GROWS_AFTER = 2.0**16, 2000


@dataclass(frozen=True)
class Settings:
    """How to train. `old_rows`: ids below it are the tokens that the model had before it was grown; `rows`:
    ids in use.
    """

    model: Path
    precision: str
    trainable: Trainable
    old_rows: int
    rows: int
    groups: int
    seed: int
    weight_decay: float = 0.1
    decay_embeddings: bool = True
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    head_chunk: int = 512
    gradient_checkpointing: bool = False
    compile: bool = False
    device: str = "cpu"


@dataclass
class LossScale:
    """fp16 only: the loss is scaled so that small gradients survive, and the scale follows what overflows."""

    value: float = 1.0
    steps_without_overflow: int = 0
    dynamic: bool = False

    def update(self, overflow: bool) -> None:
        if not self.dynamic:
            return
        if overflow:
            self.value, self.steps_without_overflow = max(self.value / 2, 1.0), 0
        else:
            self.steps_without_overflow += 1
            if self.steps_without_overflow == SCALE_GROWS_AFTER:
                self.value, self.steps_without_overflow = self.value * 2, 0


class NativeEngine:
    """`llmforge.engine.protocol.Engine` on one device.

    Weights are float32; in bf16 and fp16 the matrix products are computed in that dtype (autocast). All
    chance of a step comes from (seed, step, rank), so there is no generator state to save.
    """

    name = "native"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        self.world = World()
        self.dtype = PRECISIONS[settings.precision]
        self.causal = load_model(settings.model, attention.choose(self.device, self.dtype)).to(self.device)
        freeze(self.causal, settings.trainable)
        if settings.gradient_checkpointing:
            self.causal.gradient_checkpointing_enable({"use_reentrant": False})
        self.rows = (settings.old_rows, settings.rows) if settings.trainable.new_rows_only else None
        self.module = CausalLoss(self.causal, self.dtype, settings.head_chunk, self.rows)
        self.module.train()
        self.parameters = {n: p for n, p in self.causal.named_parameters() if p.requires_grad}
        self.masked = list(embedding_parameters(self.causal).values()) if self.rows else []
        self.optimizer = self._make_optimizer()
        self.scale = LossScale(SCALE_AT_START, dynamic=True) if settings.precision == "fp16" else LossScale()
        self.steps = 0

    # -- one step
    # ---------------------------------------------------------------------------------------------------

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, accept: Accept
    ) -> StepResult:
        self._seed_step()
        tokens = self._sum_over_ranks(
            torch.tensor([float(count_targets(micro_batches))], dtype=torch.float64)
        )
        factor = self.scale.value * self.world.data_size / max(tokens.item(), 1.0)
        sums = torch.zeros(2, self.settings.groups, dtype=torch.float64)
        for number, batch in enumerate(micro_batches):
            with self._gradient_sync(number == len(micro_batches) - 1), self._autocast():
                loss, losses = self.module(self._to_device(batch))
            (loss * factor).backward()
            sums += group_sums(losses, batch, self.settings.groups)
        groups = self._as_loss_sums(sums)
        loss_sum, valid = groups.loss.sum().item(), int(groups.tokens.sum().item())
        norm = self._gradient_norm() / self.scale.value
        finite = math.isfinite(loss_sum) and math.isfinite(norm)
        applied = valid > 0 and finite and accept(loss_sum / valid, norm)
        if applied:
            self._update(learning_rate, norm)
        self.scale.update(overflow=not finite)
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return StepResult(loss_sum, valid, norm, applied, groups)

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> LossSums:
        sums = torch.zeros(2, self.settings.groups, dtype=torch.float64)
        self.module.eval()
        with torch.no_grad(), self._autocast():
            for batch in micro_batches:
                sums += group_sums(self.module(self._to_device(batch))[1], batch, self.settings.groups)
        self.module.train()
        return self._as_loss_sums(sums)

    def _update(self, learning_rate: float, norm: float) -> None:
        clip = self.settings.clip
        factor = min(1.0, clip / (norm + 1e-6)) if clip > 0 else 1.0
        factor /= self.scale.value
        if factor != 1.0:
            torch._foreach_mul_([p.grad for p in self.parameters.values() if p.grad is not None], factor)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()

    def _gradient_norm(self) -> float:
        """L2 norm over all trained parameters, the loss scale included; rows that are not trained are cleared
        first.
        """
        for parameter in self.masked:
            if parameter.grad is not None and self.rows is not None:
                parameter.grad[: self.rows[0]] = 0
                parameter.grad[self.rows[1] :] = 0
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))

    def _seed_step(self) -> None:
        number = hash((self.settings.seed, self.steps, self.world.rank)) & 0x7FFFFFFF
        random.seed(number)
        torch.manual_seed(number)

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @contextmanager
    def _gradient_sync(self, last: bool) -> Iterator[None]:
        yield

    def _to_device(self, batch: MicroBatch) -> MicroBatch:
        if self.device.type == "cpu":
            return batch
        moved = {
            n: getattr(batch, n).to(self.device, non_blocking=True)
            for n in ("input_ids", "targets", "positions")
        }
        return replace(batch, **moved)

    def _sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def _as_loss_sums(self, sums: torch.Tensor) -> LossSums:
        sums = self._sum_over_ranks(sums)
        return LossSums(loss=sums[0], tokens=sums[1].long())

    # -- optimizer and state
    # ------------------------------------------------------------------------------------------

    def _make_optimizer(self) -> torch.optim.AdamW:
        """AdamW (arXiv 1711.05101): norms and biases do not decay, nor do embeddings whose old rows must stay
        as they are.
        """
        embeddings = {id(p) for p in embedding_parameters(self.causal).values()}
        decayed: list[torch.nn.Parameter] = []
        kept: list[torch.nn.Parameter] = []
        for parameter in self.parameters.values():
            may_decay = parameter.ndim >= 2 and (
                id(parameter) not in embeddings or (self.settings.decay_embeddings and self.rows is None)
            )
            (decayed if may_decay else kept).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": self.settings.weight_decay},
            {"params": kept, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=0.0, betas=self.settings.betas, eps=1e-8, fused=True
        )
        for parameter in self.parameters.values():
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=self.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return optimizer

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{n}.{key}": t for n, p in self.parameters.items() for key, t in self.optimizer.state[p].items()
        }

    def snapshot(self) -> "NativeSnapshot":
        frozen = {p.data_ptr() for p in self.causal.parameters() if not p.requires_grad}
        weights = {
            name: tensor if tensor.data_ptr() in frozen else tensor.detach().cpu().clone()
            for name, tensor in storage.unique_state(self.causal).items()
        }
        return NativeSnapshot(
            weights, {name: t.detach().cpu().clone() for name, t in self._optimizer_tensors().items()}
        )

    def load_state(self, directory: Path) -> None:
        storage.load_sharded(self._optimizer_tensors(), directory)

    def load_weights(self, directory: Path) -> None:
        tensors = storage.read_weights(directory)
        with torch.no_grad():
            for name, tensor in storage.unique_state(self.causal).items():
                tensor.copy_(tensors[name])

    def state(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "loss_scale": self.scale.value,
            "steps_without_overflow": self.scale.steps_without_overflow,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
        self.scale.value, self.scale.steps_without_overflow = (
            float(state["loss_scale"]),
            int(state["steps_without_overflow"]),
        )

    def describe(self) -> str:
        trained = sum(p.numel() for p in self.parameters.values())
        whole = sum(p.numel() for p in self.causal.parameters())
        return (
            f"{self.name} engine on {self.device}, {self.settings.precision}, "
            f"training {trained:,} of {whole:,} parameters"
        )

    def new_row_norm(self) -> float | None:
        if self.settings.rows <= self.settings.old_rows:
            return None
        rows = self.causal.get_input_embeddings().weight[self.settings.old_rows : self.settings.rows]
        return float(rows.detach().float().norm(dim=1).mean())

    def peak_memory(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class NativeSnapshot:
    """Copies of the weights and the optimizer's tensors, on the CPU."""

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor] = field(repr=False)

    def write_model(self, directory: Path) -> None:
        storage.write_weights(self.weights, directory)

    def write_state(self, directory: Path) -> None:
        storage.save_sharded(self.optimizer, directory)


def count_targets(micro_batches: Sequence[MicroBatch]) -> int:
    return sum(int((batch.targets != IGNORED).sum()) for batch in micro_batches)


def group_sums(losses: torch.Tensor, batch: MicroBatch, groups: int) -> torch.Tensor:
    """float64 (2, groups): the summed loss and the number of tokens of every group of a micro-batch."""
    valid = (batch.targets != IGNORED).flatten()
    group = batch.groups.flatten()[valid]
    values = losses.detach().cpu()[valid].double()
    return torch.stack(
        [
            torch.bincount(group, weights=values, minlength=groups),
            torch.bincount(group, minlength=groups).double(),
        ]
    )
