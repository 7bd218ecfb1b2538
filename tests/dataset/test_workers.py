"""Tasks in worker processes that are killed by the system."""

import os
import signal

import pytest

from llmforge.dataset.workers import LocalRun
from llmforge.errors import InterruptionError


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_said_whenever_it_is_noticed() -> None:
    """While its task is waited for, and when the next tasks are given out."""
    with LocalRun(2) as run:
        with pytest.raises(InterruptionError, match="a worker process was killed"):
            list(run(die, [(), ()]))
        with pytest.raises(InterruptionError, match="a worker process was killed"):
            run(die, [(), ()])
