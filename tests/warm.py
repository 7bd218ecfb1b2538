"""A process that has imported torch and transformers and forks to run a command of llmforge.

Importing them takes ten times as long as the command itself with models of tests. What it forks is a process of its own
as `python -m llmforge` is: its arguments, directory, streams, signals and end. Nothing of llmforge is imported before.
Where the first word is a file of Python, that is run in the place of llmforge.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

COMMON = (
    "typer",
    "pydantic.types",
    "rich.table",
    "rich.progress",
    "msgspec.json",
    "yaml",
    "numpy",
    "tokenizers",
)
IMPORTED = (
    *COMMON,
    "torch.utils.tensorboard",
    "torch._dynamo",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "transformers.generation",
    "transformers.conversion_mapping",
    "accelerate",
    "datasets",
)
# Commands that import torch, and those that must do without it.
COMMANDS = {
    "train",
    "train-preferences",
    "plan",
    "init-model",
    "prune-vocabulary",
    "export",
    "delta",
    "evaluate",
    "generate",
}
WITHOUT_TORCH = {
    "learn-pieces",
    "init-tokenizer",
    "compare-tokenizers",
    "prepare-data",
    "inspect-data",
    "report",
    "verify",
}
PR_SET_PDEATHSIG = 1  # linux/prctl.h
TERMINAL = {"COLUMNS": "200", "NO_COLOR": "1"}
# What may differ from the environment in which the modules were imported: no import looks at it. torch sets the third,
# llmforge's workers the next two, launchers the rest.
FREE = {
    "PYTEST_CURRENT_TEST",
    "XDG_CACHE_HOME",
    "TORCHINDUCTOR_CACHE_DIR",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
}


def heed_signals() -> None:
    """Takes SIGINT and SIGHUP as a command in a terminal does: background jobs of a shell and nohup ignore them.

    For `preexec_fn` and for the beginning of a forked process.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def end_with_parent() -> None:
    """This process is killed when the one that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Started:
    """A process that `Warm` forked, with as much of `subprocess.Popen` as tests ask for."""

    def __init__(self, words: Sequence[str], place: Path, pid: int) -> None:
        self.args, self.place, self.pid = words, place, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code as `subprocess` has it, None while it runs."""
        if self.returncode is None:
            self.returncode = read_number(self.place / "code")
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 600) -> int:
        """The exit code; `subprocess.TimeoutExpired` after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout, *self._printed())
            time.sleep(0.005)
        return code

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """What it printed on standard output and on standard error."""
        self.wait(timeout)
        return self._printed()

    def _printed(self) -> tuple[str, str]:
        return (self.place / "out").read_text("utf-8"), (self.place / "err").read_text("utf-8")


class Warm:
    """The client; the process starts with the first command, by `starter` if there is one, and imports `modules`."""

    def __init__(
        self,
        environment: dict[str, str],
        modules: Sequence[str] = IMPORTED,
        commands: Collection[str] = COMMANDS,
        starter: Sequence[str] = (),
    ) -> None:
        self.environment, self.modules, self.commands = environment, modules, commands
        self.starter = starter
        self._server: subprocess.Popen[str] | None = None
        self._places = tempfile.TemporaryDirectory()

    def takes(self, words: Sequence[str], environment: dict[str, str]) -> bool:
        changed = {n for n, v in environment.items() ^ self.environment.items()} - FREE
        return words[:1] != [] and words[0] in self.commands and not changed

    def server(self) -> "subprocess.Popen[str]":
        """The process that forks."""
        if self._server is None:
            self._server = subprocess.Popen(
                [*self.starter, sys.executable, __file__, *self.modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
                bufsize=1,
                env=self.environment,
            )
        return self._server

    def start(
        self, words: Sequence[str], environment: dict[str, str], terminal: str | None = None
    ) -> Started:
        """Forks a command, whose streams are files, or a terminal of that name."""
        server = self.server()
        assert server.stdin
        place = Path(tempfile.mkdtemp(dir=self._places.name))
        request = {"words": words, "environment": environment, "directory": str(Path.cwd())}
        request |= {"place": str(place), "terminal": terminal}
        print(json.dumps(request), file=server.stdin, flush=True)
        while (pid := read_number(place / "pid")) is None:
            assert server.poll() is None, "the process that forks has ended"
            time.sleep(0.005)
        return Started(words, place, pid)

    def run(
        self, words: Sequence[str], environment: dict[str, str], timeout: float
    ) -> "subprocess.CompletedProcess[str]":
        process = self.start(words, environment)
        try:
            out, err = process.communicate(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        return subprocess.CompletedProcess(words, process.wait(), out, err)

    def close(self) -> None:
        if self._server:
            self._server.communicate()
        self._places.cleanup()


def read_number(file: Path) -> int | None:
    """What `file` holds, None before all of it is written."""
    text = file.read_text() if file.exists() else ""
    return int(text) if text.endswith("\n") else None


def serve() -> None:
    """Forks for each request a process that forks the command and writes its number and its exit code to files."""
    end_with_parent()
    for name in sys.argv[1:]:
        with contextlib.suppress(
            ImportError
        ):  # another version, or not installed: the command says so itself
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # looking for cycles would copy the pages of all that is imported
    while line := sys.stdin.readline():
        if os.fork():
            reap()
            continue
        end_with_parent()
        request = json.loads(line)
        if not (process := os.fork()):
            become(request)
        place = Path(request["place"])
        (place / "pid").write_text(f"{process}\n")
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        (place / "code").write_text(f"{code}\n")
        os._exit(0)
    reap()
    os._exit(0)  # and whatever a test left running ends with this process


def reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def become(request: dict[str, Any]) -> NoReturn:
    end_with_parent()
    heed_signals()
    place, terminal = Path(request["place"]), request["terminal"]
    if terminal:
        os.setsid()
    for number, name, flags in (
        (0, terminal or os.devnull, os.O_RDONLY),
        (1, terminal or place / "out", os.O_WRONLY | os.O_CREAT),
        (2, terminal or place / "err", os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(name, flags), number)
    # The server's may have read ahead, and took the files that were there for what they can do.
    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    code: object = 0
    try:
        run(request["words"])
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
    # As Python ends, but for taking every module apart, which takes longer than most commands.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit((code or 0) & 0xFF if isinstance(code, int | None) else 1)


def run(words: list[str]) -> None:
    if words[0].endswith(".py"):
        sys.path[:1], sys.argv = [str(Path(words[0]).parent), str(Path(__file__).parent)], words
        runpy.run_path(words[0], run_name="__main__")
    else:
        sys.path[0] = str(Path.cwd())  # as `python -m` has it
        sys.argv = ["llmforge", *words]
        runpy.run_module("llmforge", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve()
