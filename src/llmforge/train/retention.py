# ruff: noqa: RUF009 - `option` makes dataclass fields
"""The options that keep what a model knew while it learns, and average what it becomes. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.backends.common.trainable import parse
from llmforge.errors import UsageError
from llmforge.options import Options, option, options_of

PANEL = "Averaging and forgetting"


@dataclass(frozen=True)
class RetentionOptions(Options):
    """None where an option is not given."""

    ema: float | None = option(
        "Also keep an exponential moving average of the trained weights, with this decay per step (such as 0.999): "
        "OUTPUT/ema, beside OUTPUT/modeling. --eval-data and --eval-tasks measure both.",
        None,
        panel=PANEL,
        least=0,
        most=0.999999,
    )
    l2_to_start: float | None = option(
        "Pull trained weights towards those of --model, as weight decay pulls them towards 0: this strength times the "
        "learning rate. Rows of new tokens are not pulled.",
        None,
        panel=PANEL,
        least=0,
    )
    distill_from_source: float | None = option(
        "Weight of a second loss: the divergence from the next-token distribution of the source model, on text of old tokens.",
        None,
        panel=PANEL,
        least=0,
    )
    source_model: Path | None = option(
        "For --distill-from-source: the source model (default: --model).", None, panel=PANEL, decides=False
    )
    protect_source: list[Path] = option(
        "Outputs of prepare-data with text of the source: the columns of each matrix that matter most to it are frozen.",
        [],
        panel=PANEL,
        decides=False,
    )
    protect_share: float | None = option(
        "For --protect-source: the part of the columns that is frozen (default: 0.5).",
        None,
        panel=PANEL,
        least=0,
        most=1,
    )

    def check(self, trainable: str, largest_rate: float) -> None:
        """Raises `UsageError` for what `--trainable` or the largest learning rate of any group makes impossible."""
        wanted = parse(trainable)
        if self.ema is not None and wanted.lora:
            raise UsageError(
                f"--ema contradicts --trainable {trainable}, whose adapters are merged wherever weights are saved; use llmforge "
                "merge on its checkpoints."
            )
        if self.l2_to_start is not None and not wanted.source_weights:
            raise UsageError(
                f"--l2-to-start contradicts --trainable {trainable}, which trains no weight of the source itself; leave it out."
            )
        if self.protect_source and not wanted.inside_layers:
            raise UsageError(
                f"--protect-source contradicts --trainable {trainable}, which trains no matrix of the layers; leave it out."
            )
        if self.protect_share is not None and not self.protect_source:
            raise UsageError(
                "--protect-share has no effect without --protect-source, the text that is to be kept."
            )
        if self.source_model is not None and self.distill_from_source is None:
            raise UsageError(
                "--source-model has no effect without --distill-from-source, its weight in the loss."
            )
        if (self.l2_to_start or 0) * largest_rate > 1:
            raise UsageError(
                f"--l2-to-start {self.l2_to_start:g} times the learning rate {largest_rate:g} is more than 1, which moves weights "
                "past their start; give less."
            )

    @property
    def protected_share(self) -> float | None:
        """The part of the columns that --protect-source freezes; None without it."""
        if not self.protect_source:
            return None
        return 0.5 if self.protect_share is None else self.protect_share

    def given(self) -> list[str]:
        """The names of the options that are given."""
        return [one.name for one in options_of(type(self)) if getattr(self, one.name) not in (None, [])]

    @property
    def needs_start(self) -> bool:
        """Whether each step needs what training started from, so that a resume must have it too."""
        return self.l2_to_start is not None or (
            self.distill_from_source is not None and self.source_model is None
        )

    def arguments(self) -> dict[str, Any]:
        """Those that are given, so that outputs of versions without them stay recognized."""
        found = {name: value for name, value in super().arguments().items() if value is not None}
        return found | ({"protect_share": self.protected_share} if self.protect_source else {})
