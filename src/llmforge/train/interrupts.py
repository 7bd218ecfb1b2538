"""Signals that end a run in good order."""

import signal
from types import FrameType
from typing import Protocol


class Stoppable(Protocol):
    """What asks to be stopped by a sentence that says why."""

    asked_to_stop: str | None


class Interrupts:
    """SIGTERM and SIGINT end a run after the step under way, with a checkpoint; a second SIGINT ends it
    at once.
    """

    def __init__(self, run: Stoppable) -> None:
        self.run = run

    def __enter__(self) -> None:
        self.previous = {
            number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)
        }

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self.run.asked_to_stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.run.asked_to_stop = signal.Signals(number).name
