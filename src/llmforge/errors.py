"""The user's mistakes, told apart from faults of the program.

Whatever is raised as a `UserError` reaches the terminal as one sentence; anything else is a bug and is
reported as one. Sentences name the file, line or flag, and say what to do.
"""

import errno
import os
from pathlib import Path

DISK_FULL = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
)  # of an OSError: no space, no quota, over a file's limit


class UserError(ValueError):
    """A mistake that the user can correct. `str(error)` is the whole sentence shown; exit code 1."""

    exit_code = 1


class InterruptionError(UserError):
    """Something from outside stopped the work: what is finished stays, and the same command continues from it."""

    # Of a training that `run` started and that a signal or --time-limit stopped: EX_TEMPFAIL of sysexits.h.
    stopped_exit_code = 75


class UsageError(UserError):
    """A wrong flag or a contradiction between flags; exit code 2."""

    exit_code = 2


def missing(path: Path) -> UserError:
    """The error where nothing is at `path`: a link that leads nowhere is listed by ls all the same."""
    name = _text(path)
    if path.is_symlink():
        target = _text(os.readlink(path))
        return UserError(f"{name} is a symbolic link to {target}, which does not exist; check it.")
    return UserError(f"{name} does not exist; check the path.")


def _text(path: str | Path) -> str:
    """A path of any bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
