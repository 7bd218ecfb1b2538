"""docs/models.md is what the tools find: every architecture tried against transformers' own model."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_no_cell_of_the_table_is_wrong() -> None:
    notes = re.findall(r"^\d+\. (.*)$", (ROOT / "docs" / "models.md").read_text(encoding="utf-8"), re.M)
    assert notes
    assert not [note for note in notes if note.startswith(("differs", "fails", "not tried"))]


@pytest.mark.slow
def test_the_table_of_models_is_what_the_tools_find() -> None:
    if not os.environ.get("LLMFORGE_PYTHON_TRANSFORMERS4"):
        pytest.skip("LLMFORGE_PYTHON_TRANSFORMERS4 is not set")
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "model_table.py"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr[-2000:]
