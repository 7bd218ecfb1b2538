"""Signs of life between the processes of a run: one that is stopped, or whose host hangs, is named by the others.

Collective calls wait for a process that does not answer, and cannot be interrupted. So a thread of each process counts
up a number of its own in the launcher's key-value store; rank 0 reads the numbers of all others, they read that of rank
0. Where one stands still for too long, the process that sees it says so and exits, and the launcher ends the rest.
"""

import contextlib
import os
import sys
import threading
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from llmforge.backends.common.processes import Processes
from llmforge.console import say

MOST_SECONDS_BETWEEN = 5.0
DONE = b"done"


class Heartbeats:
    """From `start` to `stop` every rank is watched; `seconds` without a heartbeat end the run (0: never)."""

    def __init__(self, processes: Processes, seconds: float) -> None:
        self.processes, self.seconds = processes, seconds
        self.rank, size = processes.world.rank, processes.world.size
        self.between = min(MOST_SECONDS_BETWEEN, seconds / 4)
        self.watched = list(range(1, size)) if self.rank == 0 else [0]
        self.done = threading.Event()
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """Collective."""
        if self.processes.world.size == 1 or not self.seconds:
            return
        # A connection of its own: calls that wait on the one of the process group would hold up this thread.
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.store: Any = dist.TCPStore(  # type: ignore[attr-defined]
            host, port, is_master=False, timeout=timedelta(seconds=max(1.0, self.seconds))
        )
        self.store.set(_key(self.rank), "0")
        self.processes.gather(None)  # from now on every key is there
        self.thread = threading.Thread(target=self._watch, name="heartbeats", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Tells the others that this rank is done, whether well or not."""
        self.done.set()
        if self.thread:
            self.thread.join(self.between + 1)
            with contextlib.suppress(dist.DistError, RuntimeError):
                self.store.set(_key(self.rank), DONE.decode())

    def _watch(self) -> None:
        seen: dict[int, bytes] = {}
        still = dict.fromkeys(self.watched, 0)
        number = 0
        # What counts is how often this thread has looked, not the time: it may have been stopped itself.
        while not self.done.wait(self.between):
            number += 1
            try:
                self.store.set(_key(self.rank), str(number))
                values = self.store.multi_get([_key(rank) for rank in self.watched])
            except (dist.DistError, RuntimeError) as error:
                if "timeout" in str(error).lower() or "timed out" in str(error).lower():
                    self._end("the key-value store of the processes (on the host of rank 0)")
                return  # closed: the run or its launcher ends
            for rank, value in zip(self.watched, values, strict=True):
                still[rank] = still[rank] + 1 if seen.get(rank) == value and value != DONE else 0
                seen[rank] = value
            silent = [rank for rank in self.watched if still[rank] * self.between >= self.seconds]
            if silent and not self.done.is_set():
                self._end(", ".join(map(self.processes.name, silent)))

    def _end(self, who: str) -> None:
        say(
            f"error: {who} sent no heartbeat for {self.seconds:,.0f} seconds (--rank-timeout), so rank {self.rank} "
            "stops; --load-checkpoint latest resumes from the last checkpoint."
        )
        sys.stdout.flush()
        os._exit(1)


def _key(rank: int) -> str:
    return f"llmforge/heartbeat/{rank}"
