"""Guards of a run: steps that are not finite, and losses or gradients that jump."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmforge.errors import UserError

MEMORY = 0.02  # weight of the newest step in the running mean: about the last hundred steps count
STEPS_BEFORE_JUDGING = 20
BAD_ROWS = "bad_rows.jsonl"


@dataclass
class Running:
    """Running mean and variance of a figure: exact at first, exponentially weighted once there are enough."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def z_score(self, value: float) -> float:
        """Standard deviations of `value` above the mean; 0 while too little is known."""
        if self.count < STEPS_BEFORE_JUDGING:
            return 0.0
        # A floor of 1 % of the mean: a loss that hardly moves must not make every ripple a jump.
        return (value - self.mean) / max(math.sqrt(self.variance), 0.01 * abs(self.mean), 1e-12)

    def add(self, value: float) -> None:
        self.count += 1
        weight = max(MEMORY, 1 / self.count)
        change = value - self.mean
        self.mean += weight * change
        self.variance = (1 - weight) * (self.variance + weight * change * change)


@dataclass
class Guard:
    """Judges every step before it touches the weights, from figures that all ranks share."""

    policy: str
    threshold: float
    loss: Running = field(default_factory=Running)
    norm: Running = field(default_factory=Running)
    spiked: str | None = None

    def accept(self, loss: float, gradient_norm: float) -> bool:
        """Whether the step may be applied; `spiked` says what jumped, if anything did."""
        figures = (("loss", self.loss, loss), ("gradient norm", self.norm, gradient_norm))
        jumps = [
            f"{name} {v:.4g} after {r.mean:.4g}" for name, r, v in figures if r.z_score(v) > self.threshold
        ]
        self.spiked = ", ".join(jumps) or None
        if jumps and self.policy != "warn":
            return False
        self.loss.add(loss)
        self.norm.add(gradient_norm)
        return True

    def state(self) -> dict[str, Any]:
        return {"loss": asdict(self.loss), "norm": asdict(self.norm)}

    def restore(self, state: dict[str, Any]) -> None:
        self.loss, self.norm = Running(**state["loss"]), Running(**state["norm"])


@dataclass(frozen=True)
class BadStep:
    """A step that was not applied: why, and the rows (numbers in the dataset) that it had read."""

    step: int
    epoch: int
    why: str
    rows: list[int]


def stop_for(bad: Sequence[BadStep], save_dir: Path, write: bool) -> UserError:
    """The error after too many skipped steps in a row; the rows' identity is written to a file."""
    file = save_dir / BAD_ROWS
    if write:
        file.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in bad), encoding="utf-8")
    return UserError(
        f"{len(bad)} steps in a row could not be applied ({bad[-1].why}); the rows that they read are in {file}; "
        "look at them with llmforge inspect-data, or lower --lr."
    )
