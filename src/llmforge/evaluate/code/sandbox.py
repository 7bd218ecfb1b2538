"""Programs that nobody has read, run where they cannot do harm; what is closed is done by `jail.py`."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmforge.console import warn
from llmforge.errors import UserError

MEMORY_BYTES, FILE_BYTES, DISK_BYTES = 1 << 30, 16 << 20, 64 << 20
WALL_FACTOR = 5  # seconds of the clock for each CPU second: machines have other work
OPEN = {
    "network": "the network is open to them (neither namespaces nor libseccomp are permitted)",
    "processes": "other processes of yours are within their reach (neither namespaces nor libseccomp are permitted)",
    "files": "your files are within their reach (user namespaces are not permitted, or Linux is older than 5.12)",
}


@dataclass(frozen=True)
class Ran:
    """`outcome` is passed, failed or time; `why` says more of it; `closed` what was out of the program's reach."""

    outcome: str
    why: str
    closed: dict[str, bool] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


@dataclass(frozen=True)
class Sandbox:
    """Limits of one program: CPU seconds and bytes. `namespaces` and `seccomp`: whether they are tried."""

    seconds: float = 3.0
    memory_bytes: int = MEMORY_BYTES
    namespaces: bool = True
    seccomp: bool = True

    def check(self) -> None:
        """Warns of what this machine does not close; `UserError` where not even forks are, or nothing runs."""
        probe = self.run("pass")
        if not probe.closed.get("forks"):
            raise UserError(
                "--allow-code-execution: as root, new processes can only be refused by libseccomp, which is not here or not permitted; install libseccomp2, "
                "or run as another user."
            )
        if not probe.passed:
            raise UserError(f"--allow-code-execution: an empty program does not run here ({probe.why}).")
        for what, sentence in OPEN.items():
            if not probe.closed[what]:
                warn(f"--allow-code-execution: {sentence}; run it in a container or a virtual machine.")

    def run(self, program: str) -> Ran:
        """Runs `program` to its end or its limits. It passes where its last statement is reached without an error."""
        wall = WALL_FACTOR * self.seconds
        settings = {
            "cpu_seconds": math.ceil(self.seconds),
            "wall_seconds": wall,
            "memory_bytes": self.memory_bytes,
            "file_bytes": FILE_BYTES,
            "disk_bytes": DISK_BYTES,
            "namespaces": self.namespaces,
            "seccomp": self.seccomp,
        }
        jail = Path(__file__).with_name("jail.py")
        with (
            tempfile.TemporaryDirectory(prefix="llmforge-", ignore_cleanup_errors=True) as scratch,
            tempfile.TemporaryFile() as answer,
        ):
            process = subprocess.Popen(
                [sys.executable, "-I", str(jail), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=answer,
                stderr=subprocess.DEVNULL,
                cwd=scratch,
                env=_environment(scratch),
                start_new_session=True,
            )
            try:
                process.communicate(program.encode("utf-8", "replace"), timeout=wall + 60)
            except subprocess.TimeoutExpired:
                pass
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            answer.seek(0)
            return _ran(answer.read(1 << 16))


def _ran(said: bytes) -> Ran:
    try:
        found: dict[str, Any] = json.loads(said)
    except ValueError:
        return Ran("failed", "the sandbox ended without an answer")
    return Ran(found["outcome"], found["why"], found["closed"])


def _environment(scratch: str) -> dict[str, str]:
    """Nothing of the user's own: tokens and keys lie in environments."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {
        "PATH": os.defpath,
        "HOME": scratch,
        "TMPDIR": scratch,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        **one,
    }
