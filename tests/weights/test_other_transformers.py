"""Every architecture again, with models written and read by transformers 4.51.3."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import llmforge
from llmforge.embedding.options import ResizeOptions
from llmforge.embedding.resize import resize
from llmforge.weights.export import FormatOptions, export

from .conftest import ARCHITECTURES, NEW_SIZE, OLD_SIZE, SPECIAL_IDS

VARIABLE = "LLMFORGE_PYTHON_TRANSFORMERS4"


@pytest.fixture
def python() -> str:
    """The interpreter with transformers 4.51.3."""
    found = os.environ.get(VARIABLE)
    if not found:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{VARIABLE} must name an interpreter with transformers 4.51.3 (make test sets it)")
        pytest.skip(f"{VARIABLE} is not set")
    return found


def run(python: str, what: str, arguments: dict[str, Any]) -> dict[str, Any]:
    script = Path(__file__).with_name("other_transformers.py")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, script, what], input=json.dumps(arguments), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


@pytest.mark.slow
def test_every_architecture_in_transformers_4(
    python: str, old_tokenizer: Path, new_tokenizer: Path, tmp_path: Path
) -> None:
    ask = "from importlib.metadata import version; print(version('transformers'))"
    version = subprocess.run([python, "-c", ask], capture_output=True, text=True).stdout.strip()
    assert version.startswith("4."), version
    names = [(architecture, tied) for architecture in ARCHITECTURES for tied in (False, True)]
    wanted = {
        f"{architecture}-{tied}": (
            architecture,
            {
                **ARCHITECTURES[architecture],
                **SPECIAL_IDS,
                "vocab_size": OLD_SIZE,
                "tie_word_embeddings": tied,
            },
            str(tmp_path / "source" / f"{architecture}-{tied}"),
        )
        for architecture, tied in names
    }
    run(python, "make", wanted)
    pairs = {}
    for name, (_, _, directory) in wanted.items():
        source = Path(directory)
        for file in old_tokenizer.iterdir():
            (source / file.name).write_bytes(file.read_bytes())
        grown = resize(source, new_tokenizer, tmp_path / "grown" / name, ResizeOptions())
        export(tmp_path / "grown" / name, tmp_path / "exported" / name, FormatOptions())
        assert grown.manifest.outputs["vocabulary"]["padded"] == 384
        for kind in ("grown", "exported"):
            pairs[f"{kind} {name}"] = (directory, str(tmp_path / kind / name), OLD_SIZE)
    assert run(python, "compare", pairs) == {name: [] for name in pairs}
    assert (
        json.loads((tmp_path / "exported" / "llama-True" / "config.json").read_text())["vocab_size"]
        == NEW_SIZE
    )


@pytest.mark.slow
def test_completeness_is_what_transformers_4_reads(python: str) -> None:
    """Whole models pass; a tensor that is missing, surplus or cut is named."""
    source = str(Path(llmforge.__file__).parents[1])
    done = subprocess.run(
        [python, Path(__file__).with_name("complete_probe.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["transformers"].startswith("4.")
    assert len(result["cases"]) == 8
    for kind, case in result["cases"].items():
        assert case["whole"] == "", kind
        assert "lacks 1 tensors" in case["one less"], (kind, case)
        assert case["name"] in case["one less"], (kind, case)
        assert "holds 1 tensors" in case["one more"], (kind, case)
        assert "has the shape" in case["one cut"], (kind, case)
        assert case["name"] in case["one cut"], (kind, case)
