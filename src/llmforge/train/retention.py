"""The options that keep what a model knew while it learns, and average what it becomes. Imports no torch."""

from dataclasses import dataclass
from typing import Any

from llmforge.errors import UsageError
from llmforge.options import Options, option

PANEL = "Averaging"


@dataclass(frozen=True)
class RetentionOptions(Options):
    """None where an option is not given."""

    ema: float | None = option(
        "Also keep an exponential moving average of the trained weights, with this decay per step (such as 0.999): "
        "OUTPUT/ema, beside OUTPUT/modeling.",
        None,
        panel=PANEL,
        least=0,
        most=0.999999,
    )

    def check(self, trainable: str) -> None:
        """Raises `UsageError` for what `--trainable` makes impossible."""
        if self.ema is not None and trainable == "lora":
            raise UsageError(
                "--ema contradicts --trainable lora, whose adapters are merged wherever weights are saved; use llmforge "
                "merge on its checkpoints."
            )

    def arguments(self) -> dict[str, Any]:
        """Those that are given, so that outputs of versions without them stay recognized."""
        return {name: value for name, value in super().arguments().items() if value is not None}
