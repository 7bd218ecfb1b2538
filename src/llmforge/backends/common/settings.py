# ruff: noqa: RUF009 - frozen dataclasses may be shared
"""How an engine trains: what the configuration of a run comes down to."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from llmforge.backends.base import MicroBatch
from llmforge.backends.common.rates import Rates
from llmforge.backends.common.trainable import Trainable
from llmforge.weights.directory import ModelDirectory

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Adapters:
    """LoRA: the `rank` of the adapters, `alpha` (None: twice the rank), the last parts of the names of the layers that get them
    (none: every linear layer but the head), whether the scale is that of rsLoRA, how likely an input of an adapter is
    dropped, and whether the norms of a weight's rows are trained apart from their directions (DoRA, arXiv 2402.09353).
    """

    rank: int
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    stabilized: bool = False
    dropout: float = 0.0
    decomposed: bool = False

    @property
    def alpha_or_default(self) -> float:
        return float(2 * self.rank if self.alpha is None else self.alpha)

    @property
    def shape(self) -> dict[str, Any]:
        """What a run that is resumed must keep of them, as JSON has it: all but the dropout."""
        return {
            "--lora-rank": self.rank,
            "--lora-alpha": self.alpha_or_default,
            "--lora-targets": sorted(self.targets),
            "--rslora": self.stabilized,
            "--dora": self.decomposed,
        }

    @property
    def scale(self) -> float:
        """What the product of two adapters is multiplied by: alpha / rank, or alpha / sqrt(rank) (arXiv 2312.03732)."""
        alpha = self.alpha_or_default
        return alpha / math.sqrt(self.rank) if self.stabilized else alpha / self.rank


@dataclass(frozen=True)
class Settings:
    """How to train. Ids below `old_rows` were there before the model was resized, ids below `rows` are in
    use.
    """

    model: ModelDirectory
    precision: str
    trainable: Trainable
    old_rows: int
    rows: int
    groups: int
    seed: int
    weight_decay: float = 0.1
    decay_embeddings: bool = True
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    clip: float = 1.0
    head_chunk: int = 512
    gradient_checkpointing: bool = False
    compile: bool = False
    attention: str = "auto"
    lora: Adapters | None = None
    noise: float = 0.0
    optimizer: str = "adamw"
    rates: Rates = Rates()
    ema: float | None = None
    l2_to_start: float | None = None
    distillation: float | None = None  # weight of the loss by `teacher`
    teacher: ModelDirectory | None = None
    protect: float | None = None  # share of the columns of each matrix that are frozen
    calibration: Iterable[MicroBatch] | None = None  # the text that decides which; None: a checkpoint says it
    origin: ModelDirectory | None = None  # what the run began with, where that is not `model`
    device: str = "cpu"

    @property
    def trained_rows(self) -> tuple[int, int] | None:
        """The rows of the embeddings that are trained, half-open, where not all of them are."""
        return (self.old_rows, self.rows) if self.trainable.new_rows_only else None
