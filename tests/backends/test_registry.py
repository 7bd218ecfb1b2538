"""Backends of other packages are found by their entry points; broken ones are named."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

ANOTHER = """
from typing import Any
from llmforge.backends.backend import Backend, Sharding, Verdict

class Another(Backend):
    name, family, needs = "another", "another", "nothing"
    def requirements(self, facts: Any) -> Verdict: return Verdict("yes", [], ["from elsewhere"])
    def sharding(self, options: Any, processes: int) -> Sharding: return Sharding()
    def build(self, options: Any, settings: Any, world: Any) -> Any: raise NotImplementedError

ONE, WRONG = Another(), object()
"""


@pytest.fixture
def package(tmp_path: Path) -> Any:
    def make(target: str) -> str:
        (tmp_path / "another_backend.py").write_text(ANOTHER)
        about = tmp_path / "another_backend-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: another-backend\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[llmforge.backends]\nanother = {target}\n")
        return os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)

    return make


def test_a_package_adds_a_backend(llmforge: Any, package: Any) -> None:
    found = json.loads(llmforge("doctor", "--json", PYTHONPATH=package("another_backend:ONE")).stdout)
    assert found["plugins"]["another"]["notes"] == ["from elsewhere"]


def test_what_is_no_backend_is_named(llmforge: Any, package: Any) -> None:
    done = llmforge("doctor", "--json", PYTHONPATH=package("another_backend:WRONG"), code=2)
    assert "the backend another (another_backend:WRONG) is not a Backend" in done.stderr
