"""Signals that end a run in good order."""

import signal
import time
from types import FrameType
from typing import Any

from llmforge.train.callbacks.base import Callback, Stage

# Ctrl-C reaches a worker from the terminal and once more from its launcher.
SECONDS_OF_ONE_REQUEST = 1.0


class Signals(Callback):
    """SIGTERM, SIGINT and SIGHUP end a run after the step under way, with a checkpoint.

    A second SIGINT ends it at once. A second SIGTERM does not: launchers and schedulers send several.
    """

    stage = Stage.STOPS
    first: float | None = None

    def start(self) -> None:
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
            numbers.append(signal.SIGHUP)
        self.previous: dict[signal.Signals, Any] = {
            number: signal.signal(number, self._stop) for number in numbers
        }

    def close(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = now
        elif number == signal.SIGINT and now - self.first > SECONDS_OF_ONE_REQUEST:
            raise KeyboardInterrupt
        self.run.asked_to_stop = self.run.asked_to_stop or signal.Signals(number).name
