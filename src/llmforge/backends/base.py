"""The Engine protocol: one optimizer step is one call, and everything a device needs lies behind it.

The trainer (`llmforge.train`) knows rows, steps, schedules and checkpoints; an engine knows devices,
processes, precision, accumulation, clipping and how its own state is stored. Tensors that cross the border
are CPU tensors.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

IGNORED = -100


@dataclass(frozen=True)
class MicroBatch:
    """`rows` packed rows of `length` tokens. Every tensor is (rows, length), int64, on the CPU.

    `targets[i, j]` is the token that position j predicts, `IGNORED` where there is nothing to learn: padding,
    tokens of `source`, and (unless documents see each other) the last token of every document. `positions`
    restart with every document. `groups[i, j]` numbers the group to which the loss of position j is reported.
    `lengths[i]` are the lengths of the documents of row i, padding included as a last one where `padded[i]`; they
    sum to `length`. `kept` (n,) int64 are the positions that have a target, in the rows laid end to end; where it is
    None they are looked for on the device, which the host then waits for. `distilled` (m,) int64 are the positions that
    also learn from a teacher.
    """

    input_ids: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    groups: torch.Tensor
    lengths: tuple[tuple[int, ...], ...]
    padded: tuple[bool, ...] = ()
    kept: torch.Tensor | None = None
    distilled: torch.Tensor | None = None


@dataclass(frozen=True)
class LossSums:
    """Sums over tokens, over all micro-batches and ranks: float64 (groups,) of losses in nats, int64
    (groups,) of tokens.
    """

    loss: torch.Tensor
    tokens: torch.Tensor


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, the same on every rank.

    `loss_sum` in nats over `valid_tokens`, of all ranks; `gradient_norm` of the mean loss before clipping
    (L2, over trained parameters). `applied` is False where the step was skipped: the loss or the gradient
    was not finite, or `accept` refused it. `groups` holds the same sums by group.
    """

    loss_sum: float
    valid_tokens: int
    gradient_norm: float
    applied: bool
    groups: LossSums

    @property
    def loss(self) -> float:
        """Mean loss in nats per valid token."""
        return self.loss_sum / max(self.valid_tokens, 1)


@dataclass(frozen=True)
class World:
    """Where this process stands among the processes, and which share of a step's rows it reads.

    Ranks that work on the same rows (tensor or pipeline parallel) have the same `data_rank`.
    """

    rank: int = 0
    size: int = 1
    data_rank: int = 0
    data_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0


class Accept(Protocol):
    """Decides, from the mean loss and the gradient norm, whether a step may touch the weights; equal on all
    ranks.
    """

    def __call__(self, loss: float, gradient_norm: float) -> bool: ...


class Engine(Protocol):
    """What the trainer needs of an engine. Collective: every rank makes the same calls in the same
    order.
    """

    family: str  # engines of one family read each other's state: native, colossal
    name: str
    precision: str
    world: World

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, accept: Accept
    ) -> StepResult:
        """Forward, backward, clip and update. The loss is the mean over all valid tokens of all ranks."""
        ...

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> LossSums:
        """Loss sums without training; ranks may bring different rows, but the same number of
        micro-batches.
        """
        ...

    def snapshot(self) -> "Snapshot":
        """A copy of everything a resume needs, which later steps do not change."""
        ...

    def load_state(self, directory: Path) -> None:
        """Restores what `Snapshot.write_state` wrote; the weights were loaded from `modeling/` when the
        engine was made.
        """
        ...

    def load_weights(self, directory: Path) -> None:
        """Replaces the weights by those of a model directory with the same tensors."""
        ...

    def load_average(self, directory: Path) -> None:
        """Restores the moving average that `Snapshot.write_average` wrote, if the engine keeps one."""
        ...

    def averaged(self) -> AbstractContextManager[None]:
        """While it is open, `evaluate` measures the moving average, if the engine keeps one; for nothing else."""
        ...

    def describe(self) -> str:
        """Collective: what runs where, and what it trains, in a line for the user."""
        ...

    def embedding_norms(self) -> torch.Tensor:
        """L2 norms of the input embeddings of the tokens in use, float64 (rows,). Waits for the device."""
        ...

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """`values`, a float64 CPU tensor, added up over the data ranks."""
        ...

    def peak_memory(self) -> int:
        """Peak bytes of memory that this rank has used: of the accelerator, or of the process on a CPU."""
        ...

    def state(self) -> dict[str, Any]:
        """Small JSON state that is equal on all ranks, such as the loss scale; goes into
        running_states.json.
        """
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        ...


class Snapshot(Protocol):
    """State frozen at one step. All calls may run in a background thread while training continues."""

    @property
    def averaged(self) -> bool:
        """Whether it has a moving average of the weights."""
        ...

    @property
    def adapted(self) -> bool:
        """Whether adapters were trained."""
        ...

    def agree(self, fine: bool) -> bool:
        """Collective: whether all ranks are fine."""
        ...

    def bytes(self) -> int:
        """Collective: what all ranks write together."""
        ...

    def write_model(self, directory: Path) -> None:
        """Collective: weights as Hugging Face safetensors shards with their index, which the main rank writes."""
        ...

    def write_average(self, directory: Path) -> None:
        """Collective: the same of the moving average of the weights."""
        ...

    def write_adapter(self, directory: Path) -> None:
        """Collective: the adapters in the files of peft, which the main rank writes."""
        ...

    def write_state(self, directory: Path) -> None:
        """Collective: optimizer and engine state, of which every rank writes its own share."""
        ...
