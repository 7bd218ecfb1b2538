"""Calls of the installed llmforge, with the CPU seconds that they take.

Each command runs in a fork of this process, which has imported torch and transformers once: importing them takes some
ten seconds of CPU, as long as a short arm trains. Otherwise it is what `python -m llmforge` is: arguments, streams,
exit code and end.
"""

import ctypes
import fcntl
import importlib
import json
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

IMPORTED = (
    "torch.utils.tensorboard",
    "torch._dynamo",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "accelerate",
    "datasets",
)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


STOPPED = 75  # of a training that a signal or its time limit stopped: it is not done


class CommandFailedError(Exception):
    """A command of llmforge ended with an error; its last words are the message."""


class StoppedError(CommandFailedError):
    """A training saved a checkpoint and ended before its last step, after `seconds` of CPU time."""

    def __init__(self, seconds: float) -> None:
        super().__init__("the training was stopped before its last step.")
        self.seconds = seconds


def llmforge(*words: object, log: Path) -> float:
    """Runs `llmforge WORDS` and appends what it prints to `log`; returns its CPU seconds, user and system.

    An output that is there already is recognized by the command itself, which then says so and ends. Raises `StoppedError` for
    exit code STOPPED and `CommandFailedError` for any other.
    """
    for name in IMPORTED:
        importlib.import_module(name)
    command = list(map(str, words))
    log.parent.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if not child:
        _become(command, log)
    try:
        _, status, used = os.wait4(child, 0)
    except BaseException:  # a signal to this process: the command saves what it can
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    seconds = used.ru_utime + used.ru_stime
    code = os.waitstatus_to_exitcode(status)
    if code == STOPPED:
        raise StoppedError(seconds)
    if code:
        raise CommandFailedError(f"llmforge {' '.join(command)}\n{log.read_text(errors='replace')[-2000:]}")
    return seconds


def _become(command: list[str], log: Path) -> None:
    """Makes this process the command. It never returns: what called `llmforge` goes on in the parent alone."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(
            PR_SET_PDEATHSIG, signal.SIGKILL
        )  # the command ends with a runner that is killed
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
        sys.argv = ["llmforge", *command]
        runpy.run_module("llmforge", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else bool(ended.code)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Whether this process alone may make `path`; with `wait` it waits until it may."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def manifest(directory: Path) -> dict[str, Any]:
    """The manifest of an output."""
    record: dict[str, Any] = json.loads((directory / "llmforge.json").read_text(encoding="utf-8"))
    return record
