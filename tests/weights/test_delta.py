"""Delta: apply(make(x)) == x, bit for bit."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from llmforge.embedding.options import ResizeOptions
from llmforge.embedding.resize import resize
from llmforge.errors import UserError
from llmforge.weights import delta
from llmforge.weights.options import DeltaApplyOptions, DeltaMakeOptions
from llmforge.weights.read import open_weights

from .test_grow import tensors


def same_files(one: Path, other: Path) -> None:
    """Equal weights, configuration and tokenizer."""
    for file in one.iterdir():
        if file.name != "llmforge.json" and ".safetensors" not in file.name:
            assert file.read_bytes() == (other / file.name).read_bytes(), file.name
    old, new = tensors(one), tensors(other)
    assert set(old) == set(new)
    for name, value in old.items():
        assert value.dtype == new[name].dtype
        assert value.tobytes() == new[name].tobytes(), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_there_and_back(
    dtype: str, tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    base = tiny_model(dtype=dtype)
    tuned = tiny_model(dtype=dtype, name="other", seed=1)
    resize(tuned, new_tokenizer, tmp_path / "tuned", ResizeOptions())
    made = delta.make(DeltaMakeOptions(base, tmp_path / "tuned", tmp_path / "delta"))
    assert made.manifest.metrics["grown_tensors"] == 2
    assert made.manifest.metrics["whole_tensors"] == 0
    delta.apply(DeltaApplyOptions(base, tmp_path / "delta", tmp_path / "back"))
    same_files(tmp_path / "tuned", tmp_path / "back")


def test_other_dtypes_shards_and_tensors_come_back_too(
    tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    base = tiny_model(tied=True, dtype="bfloat16")
    target = tiny_model(tied=False, dtype="float32", name="target", shard_size="20KB", seed=1)
    made = delta.make(DeltaMakeOptions(base, target, tmp_path / "delta"))
    assert made.manifest.metrics["whole_tensors"] == 1  # the head
    delta.apply(DeltaApplyOptions(base, tmp_path / "delta", tmp_path / "back"))
    same_files(target, tmp_path / "back")


def test_unchanged_weights_are_zeros(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_model()
    delta.make(DeltaMakeOptions(base, base, tmp_path / "delta"))
    assert not any(value.any() for value in load_file(tmp_path / "delta" / "delta.safetensors").values())


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_bits(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """NaN, infinities, negative zeros: whatever the bits, and whatever of the base is missing."""
    where = tmp_path_factory.mktemp("bits")
    for side in ("base", "target"):
        (where / side).mkdir()
        (where / side / "config.json").write_text("{}")
        values = {"always": np.zeros(1, np.float32)}
        for name in data.draw(st.sets(st.sampled_from("abc"))):
            rows, kind = data.draw(st.integers(0, 5)), data.draw(st.sampled_from(["<u2", "<u4", "<u1"]))
            raw = data.draw(st.binary(min_size=rows * 3 * 4, max_size=rows * 3 * 4))
            array = np.frombuffer(raw, kind)[: rows * 3].reshape(rows, 3)
            values[name] = array.view({"<u2": np.float16, "<u4": np.float32, "<u1": np.uint8}[kind])
        save_file(values, where / side / "model.safetensors")
    for name in ("delta", "back"):
        (where / name).mkdir()
    delta.write_delta(where / "delta", where, open_weights(where / "base"), open_weights(where / "target"))
    delta.write_tuned(where / "back", where, where / "base", where / "delta")
    same_files(where / "target", where / "back")


@pytest.mark.parametrize("side", ["base", "model"])
def test_a_model_with_nan_is_refused(side: str, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    sides = {name: tiny_model(name=name, seed=seed) for seed, name in enumerate(("base", "model"))}
    values = tensors(sides[side])
    values["model.embed_tokens.weight"][5] = np.nan
    save_file(values, sides[side] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"embed_tokens.weight contains NaN or infinity in 1 of"):
        delta.make(DeltaMakeOptions(sides["base"], sides["model"], tmp_path / "delta"))
    assert not (tmp_path / "delta").exists()


def test_another_base_is_refused_before_anything_is_written(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_model()
    target = tiny_model(name="target", seed=1)
    delta.make(DeltaMakeOptions(base, target, tmp_path / "delta"))
    values = load_file(base / "model.safetensors")
    values["model.norm.weight"][0] += 1
    save_file(values, base / "model.safetensors")
    monkeypatch.setattr("llmforge.weights.delta.write_weights", None)  # would fail if it were called
    with pytest.raises(UserError, match="not the base"):
        delta.apply(DeltaApplyOptions(base, tmp_path / "delta", tmp_path / "back"))
    assert not (tmp_path / "back").exists()


def test_a_base_divided_otherwise_is_the_same_base(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    base, again = tiny_model(), tiny_model(name="again", shard_size="20KB")
    target = tiny_model(name="target", seed=1)
    delta.make(DeltaMakeOptions(base, target, tmp_path / "delta"))
    delta.apply(DeltaApplyOptions(again, tmp_path / "delta", tmp_path / "back"))
    same_files(target, tmp_path / "back")


def test_damaged_deltas(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_model()
    delta.make(DeltaMakeOptions(base, tiny_model(name="target", seed=1), tmp_path / "delta"))
    copy = tmp_path / "copy"

    def fresh() -> Path:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tmp_path / "delta", copy, ignore=shutil.ignore_patterns("llmforge.json"))
        return copy

    (fresh() / "delta.json").unlink()
    with pytest.raises(UserError, match="not a delta"):
        delta.apply(DeltaApplyOptions(base, copy, tmp_path / "back"))
    (fresh() / "delta.json").write_text(json.dumps({"base": "", "tensors": {}}))
    with pytest.raises(UserError, match="does not match"):
        delta.apply(DeltaApplyOptions(base, copy, tmp_path / "back"))
    with (fresh() / "delta.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\x01\x02\x03\x04")
    with pytest.raises(UserError, match="damaged"):
        delta.apply(DeltaApplyOptions(base, copy, tmp_path / "back"))
    assert not (tmp_path / "back").exists()


def test_from_the_command_line(
    llmforge: Callable[..., Any], tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    base, target = tiny_model(), tiny_model(name="target", seed=1)
    llmforge("delta", "make", "--base", base, "--target", target, "--output", tmp_path / "delta")
    llmforge("delta", "apply", "--base", base, "--delta", tmp_path / "delta", "--output", tmp_path / "back")
    same_files(target, tmp_path / "back")
    help_text = llmforge("delta", "--help").stdout
    assert "make" in help_text
    assert "apply" in help_text
    llmforge("delta", "frobnicate", code=2)
    stolen = llmforge(
        "delta", "apply", "--base", target, "--delta", tmp_path / "delta", "--output", tmp_path / "x", code=1
    )
    assert stolen.stderr.count("\n") == 1
