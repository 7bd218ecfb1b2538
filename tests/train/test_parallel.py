"""Two processes with gloo: the same curve as one, and resuming on another number of processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest


def torchrun(*words: object) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "llmforge", "train", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"


def losses(save_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (save_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def common(tiny_model: Path, tiny_data: Path) -> list[object]:
    """8 rows per step whatever the number of processes: 42 rows make 6 steps, the last of 2 rows."""
    return [
        *("--pretrained", tiny_model, "--dataset", tiny_data, "--mixed-precision", "fp32", "--lr", "1e-2"),
        *("--schedule", "constant", "--save-interval", 3),
    ]


@pytest.fixture(scope="session")
def alone(llmforge: Any, common: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    save_dir = tmp_path_factory.mktemp("parallel") / "alone"
    llmforge("train", *common, "--micro-batch-size", 2, "--accumulation-steps", 4, "--save-dir", save_dir)
    return save_dir


@pytest.mark.parametrize("plugin", ["ddp", "fsdp"])
def test_two_processes_follow_the_curve_of_one(
    plugin: str, alone: Path, common: list[object], two_processes: Any, tmp_path: Path
) -> None:
    """The first by torchrun."""
    from safetensors.torch import load_file

    words = ("--micro-batch-size", 2, "--accumulation-steps", 2, "--plugin", plugin)
    start = torchrun if plugin == "ddp" else two_processes
    start(*common, *words, "--save-dir", tmp_path / "two")
    assert losses(tmp_path / "two") == pytest.approx(losses(alone), abs=1e-5)
    one = load_file(alone / "modeling" / "model.safetensors")
    two = load_file(tmp_path / "two" / "modeling" / "model.safetensors")
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4


@pytest.mark.slow
def test_muon_on_two_processes_follows_one_which_goes_on_from_its_checkpoint(
    common: list[object], llmforge: Any, two_processes: Any, tmp_path: Path
) -> None:
    words = ("--optimizer", "muon", "--micro-batch-size", 2)
    one, two = tmp_path / "one", tmp_path / "two"
    llmforge("train", *common, *words, "--accumulation-steps", 4, "--max-steps", 4, "--save-dir", one)
    two_processes(
        *common, *words, "--accumulation-steps", 2, "--max-steps", 3, "--save-dir", two, "--plugin", "ddp"
    )
    # Its products are in bf16: what the last bits of a gradient change is larger than with AdamW.
    assert losses(two) == pytest.approx(losses(one)[:3], abs=2e-3)
    (two / "llmforge.json").unlink()
    resume = ("--accumulation-steps", 4, "--max-steps", 4, "--save-dir", two, "--load-checkpoint", "latest")
    llmforge("train", *common, *words, *resume)
    assert losses(two) == pytest.approx(losses(one), abs=2e-3)


@pytest.mark.parametrize("plugin", ["ddp", "fsdp"])
def test_a_run_goes_on_with_another_number_of_processes(
    plugin: str, alone: Path, common: list[object], llmforge: Any, two_processes: Any, tmp_path: Path
) -> None:
    save_dir = tmp_path / "s"
    shutil.copytree(
        alone, save_dir, ignore=shutil.ignore_patterns("llmforge.json", "modeling", "epoch-1_step-6")
    )
    for name in ("llmforge.json", "modeling"):
        source = alone / "epoch-0_step-3" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, save_dir / "epoch-0_step-3" / name)
    words = (
        "--micro-batch-size",
        2,
        "--accumulation-steps",
        4,
        "--save-dir",
        save_dir,
        "--load-checkpoint",
        "latest",
    )
    done = two_processes(*common, *words, "--plugin", plugin, "--max-steps", 5)
    assert "keeps the 8 rows" in done.stderr
    assert losses(save_dir) == pytest.approx(losses(alone)[:5], abs=1e-5)
    # and back to one process
    (save_dir / "llmforge.json").unlink()
    llmforge("train", *common, *words)
    assert losses(save_dir) == pytest.approx(losses(alone), abs=1e-5)


def test_new_rows_only_with_the_model_cut_in_two(
    tiny_model: Path, common: list[object], two_processes: Any, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    words = (
        "--trainable",
        "new-embeddings",
        "--plugin",
        "fsdp",
        "--max-steps",
        3,
        "--save-dir",
        tmp_path / "s",
    )
    two_processes(*common, *words)
    before = load_file(tiny_model / "model.safetensors")
    after = load_file(tmp_path / "s" / "modeling" / "model.safetensors")
    changed = (before["model.embed_tokens.weight"] != after["model.embed_tokens.weight"]).any(dim=1)
    assert changed[300:330].any()
    assert not changed[:300].any()
    assert not changed[330:].any()
    assert all((before[name] == after[name]).all() for name in before if name != "model.embed_tokens.weight")


ADAPTERS = ("--trainable", "lora", "--lora-rank", 4, "--micro-batch-size", 2)


@pytest.fixture(scope="session")
def adapters_alone(llmforge: Any, common: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    save_dir = tmp_path_factory.mktemp("adapters") / "one"
    llmforge("train", *common, *ADAPTERS, "--accumulation-steps", 4, "--save-dir", save_dir)
    return save_dir


@pytest.mark.parametrize("plugin", ["ddp", "fsdp"])
def test_adapters_on_two_processes_follow_those_of_one(
    plugin: str, adapters_alone: Path, common: list[object], two_processes: Any, tmp_path: Path
) -> None:
    two_processes(
        *common, *ADAPTERS, "--accumulation-steps", 2, "--plugin", plugin, "--save-dir", tmp_path / "two"
    )
    assert losses(tmp_path / "two") == pytest.approx(losses(adapters_alone), abs=1e-5)
    from safetensors.torch import load_file

    one = load_file(adapters_alone / "modeling" / "model.safetensors")
    two = load_file(tmp_path / "two" / "modeling" / "model.safetensors")
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4
    one, two = (
        load_file(p / "adapter" / "adapter_model.safetensors") for p in (adapters_alone, tmp_path / "two")
    )
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4


def wait_for_a_step(save_dir: Path, ranks: list[Any]) -> None:
    metrics = save_dir / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
        assert all(process.poll() is None for process in ranks), ranks[0].communicate()[1]
        time.sleep(0.2)


@pytest.mark.parametrize("plugin", ["ddp", "fsdp"])
def test_a_rank_that_dies_ends_the_others_by_name(
    plugin: str, common: list[object], start_two: Any, tmp_path: Path
) -> None:
    words = ("--num-epochs", 2000, "--plugin", plugin, "--save-dir", tmp_path / "s")
    ranks = start_two([*common, *words])
    wait_for_a_step(tmp_path / "s", ranks)
    ranks[1].send_signal(signal.SIGKILL)
    _, messages = ranks[0].communicate(timeout=60)
    ranks[1].communicate()
    assert ranks[0].returncode == 1
    assert f"rank 1 (process {ranks[1].pid}" in messages


def test_a_signal_to_one_rank_saves_and_ends_all(
    common: list[object], start_two: Any, tmp_path: Path
) -> None:
    ranks = start_two([*common, "--num-epochs", 2000, "--plugin", "fsdp", "--save-dir", tmp_path / "s"])
    wait_for_a_step(tmp_path / "s", ranks)
    ranks[1].send_signal(signal.SIGTERM)
    for process in ranks:
        process.communicate(timeout=60)
        assert process.returncode == 0
    steps = len(losses(tmp_path / "s"))
    assert list((tmp_path / "s").glob(f"epoch-*_step-{steps}/llmforge.json"))


def test_a_port_in_use_is_named(common: list[object], llmforge: Any, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        launched = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        launched["MASTER_PORT"] = str(taken.getsockname()[1])
        done = llmforge("train", *common, "--save-dir", tmp_path / "s", code=1, **launched)
    assert "--master-port" in done.stderr
