"""The entry point, and the one boundary at which errors become sentences."""

import contextlib
import gc
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn


class TerminatedError(SystemExit):
    """SIGTERM or SIGHUP, raised where the command stands, so that it cleans up as after Ctrl-C."""


def main() -> None:
    """Runs the command line and exits: 0 done, 2 wrong use, 128 + the number of the signal that ended it, 1 anything else."""
    from llmforge.console import open_streams, writing_results

    open_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has SIGHUP ignored
            signal.signal(number, _terminate)
    from llmforge.cli.app import app
    from llmforge.cli.results import debug_wanted
    from llmforge.errors import UserError

    try:
        try:
            app(prog_name="llmforge")
        finally:
            with writing_results():
                sys.stdout.flush()
    except TerminatedError as ended:
        ended_by = int(ended.code or 0)
        _stop(f"ended by {signal.Signals(ended_by).name}.", 128 + ended_by)
    except KeyboardInterrupt:
        _stop("interrupted.", 130)
    except BrokenPipeError:
        _leave(1)
    except Exception as error:
        if debug_wanted(sys.argv):
            raise
        if isinstance(error, UserError):
            _stop(str(error), error.exit_code)
        if isinstance(error, OSError) and error.strerror:
            name = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            _stop(f"{name}{error.strerror[0].lower()}{error.strerror[1:]}{_room(error)}.", 1)
        if isinstance(error, RuntimeError) and "Symlink loop" in str(
            error
        ):  # of Path.resolve, before Python 3.13
            _stop(f"{error}: a link that leads to itself.", 1)
        if isinstance(error, MemoryError):
            _stop("out of memory.", 1)
        _stop(
            f"{type(error).__name__}: {error} (this is a fault of llmforge: --debug shows where, please report it).",
            1,
        )
    finally:
        gc.freeze()  # Python looks through every object for cycles as it exits, which takes up to 0.1 s


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
    raise TerminatedError(number)


def _room(error: OSError) -> str:
    """What is free where a disk was full."""
    from llmforge.errors import DISK_FULL
    from llmforge.steps import free_bytes

    if error.errno not in DISK_FULL or error.filename in (None, "", "standard output"):
        return ""
    free = free_bytes(Path(os.fsdecode(error.filename)))
    return f", {free:,} bytes are free on that disk; free some and run the same command again"


def _stop(sentence: str, code: int) -> NoReturn:
    from llmforge.console import printable

    with contextlib.suppress(OSError):  # where nobody reads it
        print(f"error: {printable(' '.join(sentence.split()))}", file=sys.stderr, flush=True)
    _leave(code)


def _leave(code: int) -> NoReturn:
    """Exits without another attempt to write what a closed pipe or a full disk did not take."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)
