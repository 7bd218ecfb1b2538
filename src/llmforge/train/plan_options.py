# ruff: noqa: RUF009 - `option` makes dataclass fields
"""The options of plan. Imports no torch."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from llmforge.options import Options, group, option, same_as
from llmforge.train.lora_options import LoraOptions
from llmforge.train.options import TrainOptions
from llmforge.train.rates import RateOptions
from llmforge.train.retention import RetentionOptions


@dataclass(frozen=True)
class PlanOptions(Options):
    """A training, and where it would run."""

    model: Path = same_as(TrainOptions, "model")
    data: list[Path] = same_as(TrainOptions, "data")
    device: str = option(
        "Device: this (the one of this machine), or a name such as h100 or a100-80gb.", "this"
    )
    processes: int = option("Number of devices.", 1, least=1)
    plugin: str = same_as(TrainOptions, "plugin")
    trainable: str = same_as(TrainOptions, "trainable")
    lora_rank: int | None = same_as(LoraOptions, "lora_rank")
    lora_targets: list[str] = same_as(LoraOptions, "lora_targets")
    dora: bool = same_as(LoraOptions, "dora")
    mixed_precision: Literal["auto", "bf16", "fp16", "fp32"] = same_as(TrainOptions, "mixed_precision")
    micro_batch_size: int = same_as(TrainOptions, "micro_batch_size")
    gradient_accumulation_steps: int = same_as(TrainOptions, "gradient_accumulation_steps")
    num_epochs: int = same_as(TrainOptions, "num_epochs")
    max_steps: int | None = same_as(TrainOptions, "max_steps")
    learning_rate: float = same_as(TrainOptions, "learning_rate")
    rates: RateOptions = group(RateOptions)
    retention: RetentionOptions = group(RetentionOptions)
    head_chunk: int | None = same_as(TrainOptions, "head_chunk")
    tp: int = same_as(TrainOptions, "tp")
    pp: int = same_as(TrainOptions, "pp")
    sp: int = same_as(TrainOptions, "sp")
    zero: int | None = same_as(TrainOptions, "zero")
    gradient_checkpointing: bool = same_as(TrainOptions, "gradient_checkpointing")

    def training(self) -> TrainOptions:
        """The training that is planned."""
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        lora = LoraOptions(**{one.name: own.pop(one.name) for one in fields(LoraOptions) if one.name in own})
        del own["device"], own["processes"]
        return TrainOptions(output=Path("unused"), lora=lora, **own)
