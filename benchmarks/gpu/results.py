"""Results of the parts of all.sh: one JSON object a line, in the file that RESULTS names, on the disk at once."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write(part: str, name: str, **figures: Any) -> None:
    """Adds the result `name` of `part`; without RESULTS in the environment nothing."""
    if target := os.environ.get("RESULTS"):
        with open(target, "a", encoding="utf-8") as file:
            file.write(json.dumps({"part": part, "name": name, **figures}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read(file: Path) -> list[dict[str, Any]]:
    """The results so far; a line that a kill cut short is left out."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def run(
    command: Sequence[str], seconds: float, log: Any = None, group: bool = True, **environment: str
) -> str | None:
    """Runs `command` for at most `seconds`; None, or in a line why it failed. What it prints goes to the file `log`, or with
    None its output to ours and its errors into that line. With `group` all that it has started ends with it; a command that
    is itself part of such a group runs others without, so that they end with the group.
    """
    process = subprocess.Popen(
        command,
        stdout=log,
        stderr=subprocess.STDOUT if log else subprocess.PIPE,
        env={**os.environ, **environment},
        text=True,
        start_new_session=group,
    )
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL) if group else process.kill()
        process.wait()
    if not process.returncode:
        return None
    last = (errors or "").strip().splitlines()
    return last[-1][:300] if last else f"exit code {process.returncode}"
