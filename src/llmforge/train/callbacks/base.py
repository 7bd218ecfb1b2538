"""What a callback is, and what it may use of the training that calls it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from llmforge.backends.base import Engine, StepResult
from llmforge.train.options import TrainOptions
from llmforge.train.prefetch import Batch
from llmforge.train.schedule import Schedule
from llmforge.train.setup import Setup
from llmforge.train.states import Position


@dataclass(frozen=True)
class Step:
    """An optimizer step that was taken. `figures` becomes its line of metrics.jsonl; `began` is `time.monotonic()`."""

    batch: Batch
    result: StepResult
    began: float
    figures: dict[str, Any]


class Run(Protocol):
    """The trainer, as callbacks see it. `position` is that after the step; `total` the number of steps of the run."""

    config: TrainOptions
    setup: Setup
    engine: Engine
    position: Position
    schedule: Schedule
    total: int
    started: float  # time.monotonic() when the run began to load
    counters: dict[str, int]
    asked_to_stop: str | None  # why this rank wants to stop: a signal or a flag
    stopping: str | None  # the same once all ranks know
    last_save: tuple[int, Path | None]  # the step of the newest checkpoint, and where it is

    def get(self, kind: "type[AnyCallback]") -> "AnyCallback":
        """The callback of class `kind`."""
        ...

    def stop_is_asked(self) -> bool:
        """Collective: whether any rank wants to stop; for callbacks that work for long."""
        ...

    def report(self, figures: dict[str, Any]) -> None:
        """Calls `report` of every callback."""
        ...

    def roll_back(self, checkpoint: Path) -> None:
        """Collective: takes weights, optimizer and step number of `checkpoint`; the data between are skipped."""
        ...

    def states(self) -> str:
        """The text of running_states.json after this step."""
        ...

    def say(self, text: str) -> None:
        """A message of the main rank."""
        ...

    def warn(self, text: str) -> None: ...


class Stage(IntEnum):
    """When a callback is called among the others; those of one stage in the order of their files."""

    STOPS = 0  # asks the run to stop
    REFUSES = 1  # skips steps
    FIGURES = 2  # adds figures to a step
    WRITES = 3  # writes them
    MEASURES = 4  # evaluates
    SAVES = 5


class Callback:
    """One concern of a training. Every rank has the same callbacks and calls them in the same order.

    Methods are empty here; a callback has those that it needs. Ranks must not decide anything by themselves that leads
    to collective calls: what one of them sees it hands in by `votes`, and all decide by the sum.
    """

    name: ClassVar[str | None] = None  # the key of its state in running_states.json; None: it has none
    stage: ClassVar[Stage] = Stage.FIGURES

    def __init__(self, run: Run) -> None:
        self.run = run

    def start(self) -> None:
        """Before the first step, once the state of a checkpoint has been loaded."""

    def poll(self) -> None:
        """Before ranks agree; may set `run.asked_to_stop`."""

    def accept(self, loss: float, gradient_norm: float) -> bool:
        """Whether the step may change the weights; both values are the same on every rank, and so is the answer."""
        return True

    def votes(self, step: Step) -> np.ndarray:
        """float64 (n,), the same n in every step: what this rank adds to a sum over all ranks."""
        return np.zeros(0)

    def agreed(self, sums: np.ndarray) -> None:
        """Gets the sums of `votes`, the same on every rank."""

    def after_step(self, step: Step) -> bool:
        """Adds to `step.figures`. True: the step is not reported, and callbacks further down do not see it."""
        return False

    def report(self, figures: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl is complete."""

    def rolled_back(self, checkpoint: Path, state: Any) -> None:
        """The run went back to `checkpoint`, which has the `state` of this callback."""

    def finish(self) -> None:
        """After the last step, also of a run that was asked to stop."""

    def summary(self) -> dict[str, Any]:
        """Figures of the whole run, for its manifest."""
        return {}

    def explain(self, error: Exception) -> Exception | None:
        """A better error than `error`, which ends the run, where this callback knows one."""
        return None

    def close(self) -> None:
        """In any case, in reverse order; not collective."""

    def state_dict(self) -> Any:
        """What a resume needs, as JSON values."""

    def load_state_dict(self, state: Any) -> None:
        """Restores what `state_dict` returned. LookupError, TypeError and ValueError say that it is damaged."""


AnyCallback = TypeVar("AnyCallback", bound=Callback)
