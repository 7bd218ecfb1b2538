"""Fixtures that every room's tests share: real inputs by package name, and the installed command."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))


@pytest.fixture(scope="session")
def real_input() -> Callable[[str], Path]:
    """`real_input("smollm2")` is the directory of that input (tools/real_inputs.py), fetched on first use."""
    from real_inputs import fetch

    return fetch


@pytest.fixture(scope="session")
def llmforge() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`llmforge("init-model", "--flag", value, code=0)` runs the command as a user does and checks its exit code."""

    def run(
        *words: object, code: int = 0, timeout: float = 600, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "llmforge", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment},
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    return run
