"""Running tasks in worker processes or on a Ray cluster: results in the order of the tasks, whatever finished
first.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from llmforge.errors import InterruptionError, UserError

SMALL_INPUT_BYTES = 8 << 20
# What only the workers need, the modules of this package import in functions, as it takes 0.1 s to import.
PRELOADED = [
    "llmforge.dataset.without_pandas",
    "pyarrow.compute",
    "pyarrow.json",
    "llmforge.dataset.writing",
    "llmforge.dataset.shards",
    "gigatoken",
]
KILLED = (
    "a worker process was killed, most likely because memory ran out; run the same command again with fewer "
    "--workers to continue."
)


class Run(Protocol):
    """`function(*task)` of every task, in the order of the tasks; several processes begin them at once.

    An error of any task is raised when its turn comes; tasks that have not begun are then given up.
    """

    def __call__(
        self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], /
    ) -> Iterator[Any]: ...


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def warm_up() -> None:
    """Starts the process whose copies the workers are, so that it imports what they need while this one is
    busy.
    """
    from multiprocessing import forkserver

    # Read once, when a process starts: glibc then keeps the memory of one block for the next, instead of
    # giving it back and having every page cleared again.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(32 << 20))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(256 << 20))
    forkserver.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def warm_up_for(inputs: Sequence[Path], workers: int) -> None:
    """`warm_up` where `inputs` are worth several `workers` (0: one per core)."""
    if (workers or available_cores()) > 1 and not is_small(inputs):
        warm_up()


def is_small(inputs: Sequence[Path]) -> bool:
    """Whether one process is done with `inputs` before others had started."""
    size = 0
    for path in inputs:
        files = (
            (Path(d, n) for d, _, names in os.walk(path) for n in names) if path.is_dir() else iter([path])
        )
        for file in files:
            size += file.stat().st_size if file.is_file() else 0
            if size >= SMALL_INPUT_BYTES:
                return False
    return True


class LocalRun:
    """Runs in `workers` processes, kept from one call to the next; with one, or for a single task, in this
    one.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.pool: Any = None

    def __enter__(self) -> "LocalRun":
        """Starts the processes: copies of one that has imported what tasks need, and nothing else was done
        in.
        """
        if self.workers > 1:
            from concurrent.futures import ProcessPoolExecutor
            from multiprocessing import get_context

            warm_up()
            context = get_context("forkserver")
            self.pool = ProcessPoolExecutor(self.workers, context, initializer=_start_worker)
            self.pool.submit(available_cores)  # so that they start now
        else:
            import llmforge.dataset.without_pandas  # noqa: F401
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def __call__(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], /) -> Iterator[Any]:
        if self.pool is None:
            return (function(*task) for task in tasks)
        with _said_if_killed():  # a pool that is broken already takes no task
            futures = [self.pool.submit(function, *task) for task in tasks]
        return self._results(futures)

    def _results(self, futures: Sequence[Any]) -> Iterator[Any]:
        with _said_if_killed():
            for future in futures:
                yield future.result()


@contextmanager
def _said_if_killed() -> Iterator[None]:
    """Raises `InterruptionError` where a worker process was killed."""
    from concurrent.futures.process import BrokenProcessPool

    try:
        yield
    except BrokenProcessPool:
        raise InterruptionError(KILLED) from None


class RayRun:
    """Runs on a Ray cluster; every machine of it must see the same files under the same paths.

    Tasks are given up by leaving the cluster, never by `ray.cancel`: where a task is just ending, that stops
    this whole process, without a word ("Tried to complete task that was not pending", seen in Ray 2.60).
    """

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise UserError('--ray needs Ray: pip install "llmforge[ray]"') from None
        self.ray = ray
        self.started = not ray.is_initialized()
        if self.started:
            handler = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(
                    address=None if address == "local" else address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UserError(
                    f"--ray {address}: no Ray cluster answers at this address ({error})."
                ) from None
            signal.signal(signal.SIGTERM, handler)  # Ray's own ends the process with no tidying and code 15

    def __enter__(self) -> "RayRun":
        return self

    def __exit__(self, *_: object) -> None:
        if self.started:
            self.ray.shutdown()

    def __call__(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], /) -> Iterator[Any]:
        remote = self.ray.remote(num_cpus=1)(function)
        return self._results([remote.remote(*task) for task in tasks])

    def _results(self, waiting: Sequence[Any]) -> Iterator[Any]:
        try:
            for reference in waiting:
                yield self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None
        except self.ray.exceptions.RayError as error:
            raise InterruptionError(
                f"Ray lost a task ({str(error).splitlines()[0]}); run the same command again to continue."
            ) from None


def _start_worker() -> None:
    """One thread of computation per worker; an interrupt is the parent's to handle; no worker outlives its
    parent.
    """
    os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    if parent := parent_process():
        wait([parent.sentinel])
        os._exit(1)
