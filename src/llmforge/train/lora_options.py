# ruff: noqa: RUF009 - `option` makes dataclass fields
"""The options of --trainable lora."""

from dataclasses import dataclass
from typing import Any

from llmforge.backends.common.trainable import parse
from llmforge.errors import UsageError
from llmforge.options import Options, option

PANEL = "What is trained"


@dataclass(frozen=True)
class LoraOptions(Options):
    """Low-rank adapters (arXiv 2106.09685); the defaults leave all else to the rank."""

    lora_rank: int | None = option("Rank of the adapters of --trainable lora.", None, panel=PANEL, least=1)
    lora_alpha: float | None = option(
        "Adapters are scaled by this over the rank (default: twice the rank).", None, panel=PANEL, least=0
    )
    rslora: bool = option(
        "Scale adapters by --lora-alpha over the square root of the rank (arXiv 2312.03732).",
        False,
        panel=PANEL,
    )
    lora_targets: list[str] = option(
        "Linear layers that get adapters, such as q_proj,v_proj (default: all but the head).", [], panel=PANEL
    )

    lora_dropout: float = option(
        "Probability that an input of an adapter is dropped in a training step.", 0.0, panel=PANEL, least=0
    )
    dora: bool = option(
        "Train the norm of each row of an adapted weight apart from its direction (DoRA, arXiv 2402.09353).",
        False,
        panel=PANEL,
    )

    def check(self, trainable: str) -> None:
        """Refuses adapters that are not trained, and adapters without a rank."""
        given = {
            "--lora-rank": self.lora_rank is not None,
            "--lora-alpha": self.lora_alpha is not None,
            "--rslora": self.rslora,
            "--lora-targets": bool(self.lora_targets),
            "--lora-dropout": self.lora_dropout != 0,
            "--dora": self.dora,
        }
        adapted = parse(trainable).lora
        if adapted and self.lora_rank is None:
            raise UsageError(f"--trainable {trainable} needs --lora-rank.")
        if not adapted and any(given.values()):
            flag = next(flag for flag, is_given in given.items() if is_given)
            raise UsageError(f"{flag} contradicts --trainable {trainable}; use --trainable lora.")
        if self.lora_alpha == 0:
            raise UsageError("--lora-alpha 0 leaves the adapters without effect; give a number above 0.")
        if self.lora_dropout >= 1:
            raise UsageError(
                f"--lora-dropout {self.lora_dropout:g} leaves the adapters without input; give a number from 0 to below 1."
            )

    def given(self) -> list[str]:
        """The names of the options that not every backend carries out and that are given."""
        return [name for name in ("lora_dropout", "dora") if getattr(self, name)]

    def arguments(self) -> dict[str, Any]:
        """The rank, and of the others those that are given, so that outputs of versions without them stay recognized."""
        values = super().arguments()
        return {name: value for name, value in values.items() if value or name == "lora_rank"}
