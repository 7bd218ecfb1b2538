"""A process that has imported torch and transformers and forks to run a command of llmforge.

Importing them takes ten times as long as the command itself with models of tests. What it forks is a process of its own
as `python -m llmforge` is: its arguments, directory, streams, signals and end. Nothing of llmforge is imported before.
"""

import contextlib
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from select import select

IMPORTED = (
    "torch.utils.tensorboard",
    "torch._dynamo",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "transformers.generation",
    "transformers.conversion_mapping",
    "accelerate",
    "datasets",
)
# Commands that import torch; the others start as fast by themselves, and must do without it.
COMMANDS = {"train", "plan", "init-model", "export", "delta", "evaluate", "generate"}
TERMINAL = {"COLUMNS": "200", "NO_COLOR": "1"}
# What may differ from the environment in which the modules were imported: no import looks at it. torch sets the third,
# llmforge's workers the others.
FREE = {
    "PYTEST_CURRENT_TEST",
    "XDG_CACHE_HOME",
    "TORCHINDUCTOR_CACHE_DIR",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
}


class Warm:
    """The client; the process starts with the first command, and imports `modules`."""

    def __init__(self, environment: dict[str, str], modules: Sequence[str] = IMPORTED) -> None:
        self.environment, self.modules = environment, modules
        self._server: subprocess.Popen[str] | None = None

    def takes(self, words: Sequence[str], environment: dict[str, str]) -> bool:
        changed = {n for n, v in environment.items() ^ self.environment.items()} - FREE
        return words[:1] != [] and words[0] in COMMANDS and not changed

    def run(
        self, words: Sequence[str], environment: dict[str, str], timeout: float
    ) -> "subprocess.CompletedProcess[str]":
        server = self._started()
        assert server.stdin
        with tempfile.TemporaryDirectory() as directory:
            out, err = (Path(directory, name) for name in ("out", "err"))
            request = {"words": words, "environment": environment, "directory": str(Path.cwd())}
            print(json.dumps({**request, "out": str(out), "err": str(err)}), file=server.stdin, flush=True)
            process = self._answer(server)
            if not select([server.stdout], [], [], timeout)[0]:
                os.kill(process, 9)
                self._answer(server)
                raise subprocess.TimeoutExpired(words, timeout, out.read_text(), err.read_text())
            return subprocess.CompletedProcess(
                words, self._answer(server), out.read_text("utf-8"), err.read_text("utf-8")
            )

    def close(self) -> None:
        if self._server:
            self._server.communicate()

    def _started(self) -> "subprocess.Popen[str]":
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, __file__, *self.modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
                env=self.environment,
            )
        return self._server

    def _answer(self, server: "subprocess.Popen[str]") -> int:
        assert server.stdout
        line = server.stdout.readline()
        assert line, "the process that forks has ended"
        return int(line)


def serve() -> None:
    """Answers each request with the process's number, then with its exit code as `subprocess` has it."""
    for name in sys.argv[1:]:
        with contextlib.suppress(
            ImportError
        ):  # another version, or not installed: the command says so itself
            importlib.import_module(name)
    while line := sys.stdin.readline():
        process = os.fork()
        if not process:
            become(json.loads(line))
            return  # out of the module: Python ends as it does after any command
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


def become(request: dict[str, object]) -> None:
    for number, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["out"], os.O_WRONLY | os.O_CREAT),
        (2, request["err"], os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(str(name), flags), number)
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    os.chdir(str(request["directory"]))
    sys.path[0] = str(request["directory"])  # as `python -m` has it
    sys.argv = ["llmforge", *request["words"]]  # type: ignore[misc]
    runpy.run_module("llmforge", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve()
