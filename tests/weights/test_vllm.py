"""What vLLM asks of a model directory: nothing against an export, and a clause for each thing that it would refuse."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmforge.weights.vllm import reasons_against


@pytest.fixture
def directory(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    """An export, of a model with rows of padding."""
    from llmforge.weights.export import FormatOptions, export

    export(tiny_model(rows=320), tmp_path / "model", FormatOptions(dtype="bfloat16"), checksums=False)
    return tmp_path / "model"


def test_nothing_is_said_against_an_export(directory: Path) -> None:
    assert reasons_against(directory) == []


def _config(**fields: Any) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def _without_prefix(directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    save_file(
        {name.removeprefix("model."): t for name, t in tensors.items()}, directory / "model.safetensors"
    )


def _generation(directory: Path) -> None:
    (directory / "generation_config.json").write_text('{"eos_token_id": [0, 999]}')


def _beside(name: str) -> Callable[[Path], object]:
    return lambda directory: shutil.copy(directory / "model.safetensors", directory / name)


@pytest.mark.parametrize(
    ("damage", "clause"),
    [
        (_config(architectures=None), "names no architectures"),
        (_config(architectures=["XLNetLMHeadModel"]), "no class for XLNetLMHeadModel"),
        (_config(model_type="gemma2", torch_dtype="float16"), "refuses gemma2 in float16"),
        (_config(vocab_size=320), "as many rows of the embedding as vocab_size says, 320"),
        (_without_prefix, "lack the prefix of the base model"),
        (_generation, "eos_token_id 999"),
        (_beside("consolidated.safetensors"), "Mistral's own format"),
        (_beside("old.safetensors"), "old.safetensors too"),
    ],
    ids=["none", "unknown", "float16", "rows", "prefix", "eos", "consolidated", "stray"],
)
def test_each_thing_that_vllm_refuses_is_named(
    damage: Callable[[Path], object], clause: str, directory: Path
) -> None:
    damage(directory)
    assert [clause for reason in reasons_against(directory) if clause in reason] == [clause]
