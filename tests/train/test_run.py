"""A whole training through the command: what it writes, what it refuses, and that stopping changes
nothing.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
TIMINGS = ("seconds", "tokens_per_second", "bytes_per_second", "model_flops_per_second", "peak_memory_bytes")


def figures(save_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def weights(model: Path) -> bytes:
    return (model / "model.safetensors").read_bytes()


@pytest.fixture(scope="session")
def common(tiny_model: Path, tiny_data: Path) -> list[object]:
    return [
        *("--pretrained", tiny_model, "--dataset", tiny_data, "--mixed-precision", "fp32"),
        *("--micro-batch-size", 2, "--accumulation-steps", 2, "--lr", "1e-2", "--num-epochs", 2),
    ]


@pytest.fixture(scope="session")
def uninterrupted(llmforge: Run, common: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    save_dir = tmp_path_factory.mktemp("runs") / "whole"
    llmforge("train", *common, "--save-dir", save_dir, "--save-interval", 5)
    return save_dir


def test_a_run_learns_and_leaves_a_model_that_transformers_reads(
    uninterrupted: Path, tiny_model: Path
) -> None:
    from transformers import AutoModelForCausalLM

    from llmforge.weights.vocabulary import vocabulary

    lines = figures(uninterrupted)
    assert [line["step"] for line in lines] == list(range(1, 23))
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert set(lines[0]["loss_by_category"]) == {"en", "zh"}
    assert set(lines[0]["loss_by_token"]) == {"old", "new"}
    model = AutoModelForCausalLM.from_pretrained(uninterrupted / "modeling")
    assert model.get_input_embeddings().weight.shape[0] == 336
    assert vocabulary(uninterrupted / "modeling") == vocabulary(tiny_model)
    manifest = json.loads((uninterrupted / "llmforge.json").read_text())
    assert manifest["metrics"]["steps"] == 22
    names = {path.name for path in uninterrupted.iterdir()}
    assert {"epoch-0_step-5", "epoch-1_step-11", "epoch-2_step-22", "tensorboard", "config.yaml"} <= names


def test_the_same_command_again_is_done_before_torch_is_imported(
    uninterrupted: Path, common: list[object]
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-X", "importtime", "-m", "llmforge", "train"),
            *map(str, common),
            "--save-dir",
            uninterrupted,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "already done" in done.stdout
    modules = {
        line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time")
    }
    assert "llmforge.train.run" in modules
    assert not modules & {"torch", "transformers", "datasets", "pyarrow"}


def test_other_arguments_are_refused(uninterrupted: Path, llmforge: Run, common: list[object]) -> None:
    refused = llmforge("train", *common, "--save-dir", uninterrupted, "--lr", "1e-3", code=1)
    assert "lr" in refused.stderr
    assert "--overwrite" in refused.stderr


@pytest.mark.parametrize("step", ["epoch-0_step-5", "epoch-1_step-11", "epoch-1_step-20"])
def test_resuming_gives_the_same_bits(
    step: str, uninterrupted: Path, llmforge: Run, common: list[object], tmp_path: Path
) -> None:
    save_dir = tmp_path / "resumed"
    save_dir.mkdir()
    shutil.copytree(uninterrupted / step, save_dir / step)
    for name in ("run.json", "metrics.jsonl"):
        shutil.copy(uninterrupted / name, save_dir / name)
    resume = ("--save-dir", save_dir, "--save-interval", 5, "--load-checkpoint", "latest")
    resumed = llmforge("train", *common, *resume)
    assert "was computed by" not in resumed.stderr
    assert weights(save_dir / "modeling") == weights(uninterrupted / "modeling")
    assert figures(save_dir) == figures(uninterrupted)


def test_a_resume_that_computes_in_another_way_says_so(
    uninterrupted: Path, llmforge: Run, common: list[object], tmp_path: Path
) -> None:
    save_dir = tmp_path / "resumed"
    shutil.copytree(uninterrupted / "epoch-1_step-20", save_dir / "epoch-1_step-20")
    shutil.copy(uninterrupted / "run.json", save_dir / "run.json")
    resume = ("--save-dir", save_dir, "--load-checkpoint", "latest", "--mixed-precision", "bf16")
    resumed = llmforge("train", *common, *resume)
    line = next(one for one in resumed.stderr.splitlines() if "was computed by" in one)
    before, after = line.split("now it is")
    assert "cpu, fp32" in before
    assert "cpu, bf16" in after


def test_an_unfinished_run_names_the_two_ways_on(
    uninterrupted: Path, llmforge: Run, common: list[object], tmp_path: Path
) -> None:
    save_dir = tmp_path / "unfinished"
    save_dir.mkdir()
    shutil.copy(uninterrupted / "run.json", save_dir / "run.json")
    refused = llmforge("train", *common, "--save-dir", save_dir, code=1)
    assert "--load-checkpoint latest" in refused.stderr
    assert "--overwrite" in refused.stderr


def test_new_embeddings_leave_old_rows_bit_for_bit(
    tiny_model: Path, tiny_data: Path, llmforge: Run, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    llmforge(
        *("train", "--pretrained", tiny_model, "--dataset", tiny_data, "--save-dir", tmp_path / "s"),
        *("--trainable", "new-embeddings", "--mixed-precision", "fp32", "--max-steps", 4, "--lr", "1e-2"),
    )
    before, after = (
        load_file(tiny_model / "model.safetensors"),
        load_file(tmp_path / "s" / "modeling" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    for name, old in before.items():
        new = after[name]
        if name == "model.embed_tokens.weight":
            assert (old[:300] == new[:300]).all()
            assert (old[330:] == new[330:]).all()
            assert (old[300:330] != new[300:330]).any(axis=1).mean() > 0.9
        else:
            assert (old == new).all(), name
