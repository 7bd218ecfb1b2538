"""The ranks of one process group, forked from a process that has torch imported (warm.py).

Importing it takes a rank ten times as long as a training of tests, and torchrun imports it too. That trainings run under
torchrun is tested where it is the point. `ranks.py COUNT train ...` is that command of llmforge in COUNT ranks.
"""

import os
import signal
import sys
from collections.abc import Callable

from warm import end_with_parent, run


def in_ranks(count: int, work: Callable[[], object]) -> None:
    """Runs `work` in `count` processes with what torchrun says to each, and returns in all of them.

    This process, their parent, holds the store in which they meet; it ends with 1 when one of them fails.
    """
    from torch.distributed import TCPStore

    ports, known = os.pipe()
    running = set()
    for rank in range(count):
        if not (process := os.fork()):
            end_with_parent()
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_USE_AGENT_STORE": "True"}
            os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.read(ports, 5).decode().strip()}
            work()
            return
        running.add(process)
    store = TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )  # it has a thread: after the forks
    os.write(known, f"{store.port:5}".encode() * count)
    failed = False
    while running:
        process, status = os.wait()
        running.remove(process)
        if status and not failed:
            failed = True
            signal.alarm(60)  # for the others to say why and end; then this process ends, and they with it
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    in_ranks(int(sys.argv[1]), lambda: run(sys.argv[2:]))
