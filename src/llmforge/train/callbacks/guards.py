"""Steps that must not change the weights: those that are not finite, and jumps of the loss or the gradient."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmforge.errors import UserError
from llmforge.train.callbacks.base import Callback, Run, Stage, Step
from llmforge.train.callbacks.checkpoints import Checkpoints

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

    def state_dict(self) -> dict[str, Any]:
        return {"loss": asdict(self.loss), "norm": asdict(self.norm)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.loss, self.norm = Running(**state["loss"]), Running(**state["norm"])


@dataclass(frozen=True)
class BadStep:
    """A step that was not applied: why, and the rows (numbers in the dataset) that it had read."""

    step: int
    epoch: int
    why: str
    rows: list[int]


class Guards(Callback):
    """Counts bad steps, goes back to a checkpoint for `--on-spike rollback`, and ends the run after too many."""

    stage = Stage.REFUSES
    name = "guard"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.guard = Guard(run.config.on_spike, run.config.spike_threshold)
        self.bad: list[BadStep] = []  # in a row

    def accept(self, loss: float, gradient_norm: float) -> bool:
        return self.guard.accept(loss, gradient_norm)

    def after_step(self, step: Step) -> bool:
        run, number, spiked = self.run, self.run.position.step, self.guard.spiked
        if spiked:
            run.counters["spikes"] += 1
            run.warn(f"step {number}: spike of {spiked}; --on-spike is {run.config.on_spike}.")
        if step.result.applied:
            self.bad = []
            return False
        why = spiked or f"loss {step.result.loss}, gradient norm {step.result.gradient_norm}"
        self.bad.append(BadStep(number, step.batch.epoch, why, step.batch.rows.tolist()))
        run.counters["skipped_steps"] += 1
        if not spiked:
            run.warn(f"step {number} is skipped: {why}.")
        if len(self.bad) >= run.config.max_bad_steps:
            raise self._too_many()
        return bool(spiked) and run.config.on_spike == "rollback" and self._went_back()

    def rolled_back(self, checkpoint: Path, state: Mapping[str, Any]) -> None:
        self.guard.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        return self.guard.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.guard.load_state_dict(state)

    def _went_back(self) -> bool:
        path = self.run.get(Checkpoints).newest()
        if path is None:
            self.run.warn("there is no checkpoint yet to roll back to; the step is skipped.")
            return False
        # The data between the checkpoint and the jump are skipped (PaLM, arXiv 2204.02311, section 5.1).
        self.run.roll_back(path)
        return True

    def _too_many(self) -> UserError:
        """The error after too many bad steps in a row; the numbers of the rows that they read are written to a file."""
        self.run.get(Checkpoints).saver.wait()
        file = self.run.config.output / BAD_ROWS
        if self.run.setup.world.is_main:
            lines = [json.dumps(asdict(entry)) + "\n" for entry in self.bad]
            file.write_text("".join(lines), encoding="utf-8")
        return UserError(
            f"{len(self.bad)} consecutive steps were skipped ({self.bad[-1].why}); the rows that they read are in "
            f"{file}; look at them with llmforge inspect-data, or lower --learning-rate."
        )
