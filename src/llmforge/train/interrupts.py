"""Signals that end a run in good order, and the end of a launcher that could not send any."""

import ctypes
import os
import signal
import time
from types import FrameType
from typing import Protocol

PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Ctrl-C reaches a worker from the terminal and once more from its launcher.
SECONDS_OF_ONE_REQUEST = 1.0


class Stoppable(Protocol):
    """What asks to be stopped by a sentence that says why."""

    asked_to_stop: str | None


class Interrupts:
    """SIGTERM, SIGINT and SIGHUP end a run after the step under way, with a checkpoint.

    A second SIGINT ends it at once. A second SIGTERM does not: launchers and schedulers send several.
    """

    def __init__(self, run: Stoppable) -> None:
        self.run = run
        self.first: float | None = None

    def __enter__(self) -> None:
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
            numbers.append(signal.SIGHUP)
        self.previous = {number: signal.signal(number, self._stop) for number in numbers}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = now
        elif number == signal.SIGINT and now - self.first > SECONDS_OF_ONE_REQUEST:
            raise KeyboardInterrupt
        self.run.asked_to_stop = self.run.asked_to_stop or signal.Signals(number).name


def end_with_launcher() -> None:
    """Lets the kernel kill this process when the one that started it ends, as torchrun does when it is killed."""
    if "LOCAL_RANK" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
