"""Writing checkpoints while training continues, and living with a full disk."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llmforge.console import warn
from llmforge.errors import UserError
from llmforge.train.branch import remove_old
from llmforge.train.checkpoint import Contents, write_checkpoint


class Saver:
    """One save at a time, in a thread of its own; every rank has one, and all are called in the same order.

    A save that fails leaves the checkpoints before it as they are and costs a warning; the last one of a run
    must succeed.
    """

    def __init__(
        self, save_dir: Path, keep_last: int | None, background: bool, is_main: bool, newest: Path | None
    ) -> None:
        self.save_dir, self.keep_last, self.background = save_dir, keep_last, background
        self.is_main = is_main
        self.newest = newest  # the last checkpoint that could be written, or that the run continues from
        self._identity = _identity(save_dir)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._pending: Future[None] | None = None

    def save(self, path: Path, snapshot: Any, contents: Contents) -> None:
        """Starts to write the checkpoint `path`, after the save before has ended."""
        self.wait()
        self._pending = self._pool.submit(self._write, path, snapshot, contents)
        if not self.background:
            self.wait()

    def save_last(self, path: Path, snapshot: Any, contents: Contents) -> None:
        """Writes `path` and returns when it is there; raises `UserError` if that fails."""
        self.wait()
        self._write(path, snapshot, contents)

    def wait(self) -> None:
        """Returns when no save is under way."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except UserError as error:
            if self.is_main and not self.is_gone():
                warn(f"{error} Training continues; earlier checkpoints are kept.")

    def close(self) -> None:
        self._pool.shutdown()

    def is_gone(self) -> bool:
        """Whether the save directory was deleted, moved or replaced since the run began."""
        return _identity(self.save_dir) != self._identity

    def _write(self, path: Path, snapshot: Any, contents: Contents) -> None:
        write_checkpoint(path, snapshot, contents, self.is_main)
        self.newest = path
        if self.keep_last and self.is_main:
            remove_old(self.save_dir, self.keep_last, path)


def _identity(directory: Path) -> tuple[int, int] | None:
    """What tells `directory` from another one of its name; None where there is none."""
    try:
        status = directory.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino
