"""Ends that nobody wanted: kills, signals, time limits, full disks, bad steps, damaged checkpoints."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmforge.errors import UsageError, UserError
from llmforge.train.run import Stopped
from warm import heed_signals

Train = Callable[..., Any]
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["llmforge.train.trainer", "transformers.models.llama.modeling_llama"])


def figures(save_dir: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines]


def weights(save_dir: Path) -> bytes:
    return (save_dir / "modeling" / "model.safetensors").read_bytes()


def run_in_child(values: dict[str, Any], file_limit: int | None = None, messages: Path | None = None) -> None:
    """Runs a training in a process of its own, as the target of `PROCESSES.Process`."""
    heed_signals()
    if messages:
        os.dup2(os.open(messages, os.O_WRONLY | os.O_CREAT), 2)
    import torch

    from llmforge.train.options import TrainOptions
    from llmforge.train.run import run_training

    torch.set_num_threads(1)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    run_training(TrainOptions(**values))


@pytest.fixture
def values(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": tiny_model,
        "data": [tiny_data],
        "output": tmp_path / "run",
        "mixed_precision": "fp32",
        "learning_rate": 1e-2,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "num_epochs": 2,
    }


def start(values: dict[str, Any], **more: Any) -> Any:
    child = PROCESSES.Process(target=run_in_child, args=(values,), kwargs=more)
    child.start()
    return child


def wait_for_lines(save_dir: Path, count: int, child: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        file = save_dir / "metrics.jsonl"
        if (file.is_file() and file.read_bytes().count(b"\n") >= count) or not child.is_alive():
            return
        time.sleep(0.02)
    raise AssertionError(f"{save_dir} has no {count} steps after {seconds} s")


@pytest.mark.slow
@pytest.mark.parametrize("most", [6, pytest.param(20, marks=pytest.mark.stress)])
def test_runs_killed_at_random_moments_end_with_the_same_bits(
    most: int, values: dict[str, Any], tmp_path: Path
) -> None:
    child = start({**values, "output": tmp_path / "whole"})
    child.join()
    chance = random.Random(0)
    kills = runs = 0
    while kills < most:
        save_dir = tmp_path / f"run-{runs}"
        runs += 1
        resume: dict[str, Any] = {}
        while not (save_dir / "llmforge.json").is_file():
            metrics = save_dir / "metrics.jsonl"
            done = sum(1 for _ in metrics.open()) if metrics.is_file() else 0
            # A checkpoint after every step: much of the time goes into writing them.
            child = start({**values, "output": save_dir, "save_interval": 1, "keep_last": 2, **resume})
            if chance.random() < 0.8:
                wait_for_lines(save_dir, done + 1, child)
            time.sleep(chance.uniform(0, 1.0))
            if kills < most and child.is_alive():
                os.kill(child.pid, signal.SIGKILL)
                kills += 1
            child.join()
            if save_dir.is_dir() and (save_dir / "run.json").is_file():
                resume = {"load_checkpoint": "latest"}
        assert weights(save_dir) == weights(tmp_path / "whole")
        assert figures(save_dir) == figures(tmp_path / "whole")
        assert not list(save_dir.glob(".epoch-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits(number: int, values: dict[str, Any], tmp_path: Path) -> None:
    save_dir = tmp_path / "run"
    child = start(values)
    wait_for_lines(save_dir, 3, child)
    os.kill(child.pid, number)
    child.join(60)
    assert child.exitcode == 0
    assert not (save_dir / "llmforge.json").exists()
    steps = figures(save_dir)[-1][0]
    saved = [path for path in save_dir.iterdir() if path.name.endswith(f"_step-{steps}")]
    assert steps < 42
    assert len(saved) == 1


def test_a_time_limit_saves_and_exits_and_the_rest_can_follow(train: Train, tmp_path: Path) -> None:
    assert isinstance(train(output=tmp_path / "a", time_limit="0", save_interval=0), Stopped)
    assert figures(tmp_path / "a")[-1][0] == 1
    assert train(output=tmp_path / "a", load_checkpoint="latest") is not None
    train(output=tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_save_seconds_saves(train: Train, tmp_path: Path) -> None:
    train(max_steps=3, save_seconds=0.0, save_interval=0)
    assert {path.name for path in (tmp_path / "run").glob("epoch*")} == {
        f"epoch-0_step-{i}" for i in (1, 2, 3)
    }


@pytest.mark.parametrize("file_limit", [100_000, 200_000])
def test_a_full_disk_keeps_the_checkpoint_before_and_goes_on_but_the_last_save_must_succeed(
    file_limit: int, values: dict[str, Any], tmp_path: Path
) -> None:
    save_dir = tmp_path / "run"
    child = start({**values, "max_steps": 4, "save_interval": 2})
    child.join()
    for name in ("llmforge.json", "modeling", "epoch-0_step-4"):
        path = save_dir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    # The weights of a checkpoint have 157 kB, the optimizer twice that: not enough disk space for either, or for the second.
    more = {"max_steps": 7, "save_interval": 2, "load_checkpoint": "latest"}
    child = start({**values, **more}, file_limit=file_limit, messages=tmp_path / "messages")
    child.join()
    messages = (tmp_path / "messages").read_text()
    assert child.exitcode == 1
    assert "Training continues" in messages
    assert "could not be written" in messages
    assert figures(save_dir)[-1][0] == 7
    assert [path.name for path in save_dir.glob("epoch*")] == ["epoch-0_step-2"]
    assert not list(save_dir.glob(".epoch-*"))


def without_checksums(checkpoint: Path) -> None:
    """Rewrites the manifest of a checkpoint as version 0.1 wrote it: sizes alone."""
    from llmforge.steps import manifest_path, read_manifest, write_manifest

    manifest = read_manifest(checkpoint)
    files = {name: (checkpoint / name).stat().st_size for name in manifest.files}
    write_manifest(manifest_path(checkpoint), replace(manifest, outputs={"files": files}))


def test_state_that_cannot_be_read_is_named(train: Train, tmp_path: Path) -> None:
    assert isinstance(train(time_limit="0"), Stopped)
    checkpoint = tmp_path / "run" / "epoch-0_step-1"
    without_checksums(checkpoint)
    file = next((checkpoint / "optimizer").glob("*.distcp"))
    file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(UserError, match=r"optimizer cannot be read .*resume from another checkpoint"):
        train(load_checkpoint="latest")


def test_latest_passes_over_a_truncated_checkpoint_and_says_so(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(max_steps=6, save_interval=2, output=tmp_path / "whole")
    save_dir = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", save_dir, ignore=shutil.ignore_patterns("*_step-6"))
    (save_dir / "llmforge.json").unlink()
    shutil.rmtree(save_dir / "modeling")
    damaged = save_dir / "epoch-0_step-4" / "modeling" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be resumed"):
        train(max_steps=6, load_checkpoint=str(save_dir / "epoch-0_step-4"))
    train(max_steps=6, save_interval=2, load_checkpoint="latest")
    assert "is skipped" in capsys.readouterr().err
    assert weights(save_dir) == weights(tmp_path / "whole")


def test_keep_last_keeps_the_last(train: Train, tmp_path: Path) -> None:
    train(max_steps=6, save_interval=1, keep_last=2)
    assert {path.name for path in (tmp_path / "run").glob("epoch*")} == {"epoch-0_step-5", "epoch-0_step-6"}


@pytest.mark.parametrize("policy", ["warn", "skip", "rollback"])
def test_a_jump_of_the_loss(
    policy: str,
    make_spiked: Callable[[], Path],
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(
        data=[make_spiked()],
        micro_batch_size=1,
        learning_rate=3e-3,
        schedule="constant",
        on_spike=policy,
        save_interval=10,
        spike_threshold=5.0,
        seed=1,
    )
    manifest = json.loads((tmp_path / "run" / "llmforge.json").read_text())
    metrics = manifest["metrics"]
    assert metrics["spikes"] >= 1
    assert "spike of" in capsys.readouterr().err
    assert metrics["skipped_steps"] == (0 if policy == "warn" else metrics["spikes"])
    assert metrics["rollbacks"] == (metrics["spikes"] if policy == "rollback" else 0)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    if policy == "rollback":
        assert len(lines) < 60
        assert lines[-1]["sample"] == 0  # the epoch is over, some rows were skipped


def test_steps_that_are_not_finite_are_skipped_counted_and_end_the_run(
    train: Train, tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    # Weights so large that the forward pass overflows; infinite ones are refused before it.
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken, ignore=shutil.ignore_patterns("llmforge.json"))
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0] = 3e38
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="3 consecutive steps"):
        train(model=broken, max_bad_steps=3, micro_batch_size=2)
    entries = [json.loads(line) for line in (tmp_path / "run" / "bad_rows.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2, 3]
    assert len({row for entry in entries for row in entry["rows"]}) == 6


def test_rows_of_zeros_are_found_before_the_first_step(
    train: Train, tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.embed_tokens.weight"][310] = 0
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="310"):
        train(model=broken)


CONTRADICTIONS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"trainable": "lora"}, ("--trainable", "--lora-rank")),
    ({"lora_rank": 4}, ("--trainable", "--lora-rank")),
    ({"lora_alpha": 4}, ("--trainable", "--lora-alpha")),
    ({"rslora": True}, ("--trainable", "--rslora")),
    ({"lora_targets": ["q_proj"]}, ("--trainable", "--lora-targets")),
    ({"trainable": "lora", "lora_rank": 2, "lora_alpha": 0}, ("--lora-alpha", "above 0")),
    ({"lora_dropout": 0.1}, ("--trainable", "--lora-dropout")),
    ({"dora": True, "trainable": "embeddings"}, ("--trainable", "--dora")),
    ({"trainable": "lora", "lora_rank": 2, "lora_dropout": 1.0}, ("--lora-dropout", "below 1")),
    ({"trainable": "lora", "lora_rank": 2, "lora_dropout": -0.1}, ("--lora-dropout",)),
    ({"trainable": "lora,0-1", "lora_rank": 2}, ("--trainable",)),
    ({"freeze_non_embeds_params": True, "trainable": "0-1"}, ("--freeze-non-embeds-params", "--trainable")),
    ({"use_flash_attn": True}, ("--use-flash-attn", "--mixed-precision")),
    ({"use_flash_attn": True, "attention": "sdpa"}, ("--use-flash-attn", "--attention")),
    ({"eval_interval": 3}, ("--eval-interval", "--eval-data", "--eval-tasks")),
    ({"eval_shots": 3}, ("--eval-shots", "--eval-tasks")),
    ({"on_spike": "rollback", "save_interval": 0}, ("--on-spike", "--save-interval")),
    ({"overwrite": True, "load_checkpoint": "latest"}, ("--overwrite", "--load-checkpoint")),
    ({"max_length": 99}, ("--max-length", "--data")),
    ({"trainable": "7-9"}, ("--trainable",)),
    ({"trainable": "head"}, ("--trainable",)),
    ({"plugin": "gemini"}, ("--plugin gemini", "--mixed-precision")),
    ({"plugin": "ddp"}, ("--plugin ddp", "torchrun")),
    ({"plugin": "deepspeed"}, ("--plugin deepspeed",)),
    ({"time_limit": "soon"}, ("--time-limit",)),
    ({"min_lr_ratio": 2.0}, ("--min-lr-ratio",)),
    ({"micro_batch_size": 0}, ("--micro-batch-size",)),
]


@pytest.mark.parametrize(("flags", "named"), CONTRADICTIONS)
def test_wrong_flags_are_named(flags: dict[str, Any], named: tuple[str, ...], train: Train) -> None:
    with pytest.raises(UsageError) as raised:
        train(**flags)
    for name in named:
        assert name in str(raised.value)


def test_a_dataset_of_another_tokenizer_is_refused(train: Train, make_dataset: Callable[..., Path]) -> None:
    other = make_dataset(rows=4, tokenizer_fingerprint="xxh3:0")
    with pytest.raises(UserError, match="another tokenizer"):
        train(data=[other])


def test_a_resume_with_another_seed_or_dataset_names_the_override(
    train: Train, make_dataset: Callable[..., Path]
) -> None:
    assert isinstance(train(time_limit="0"), Stopped)
    with pytest.raises(UserError, match=r"seed.*--allow-changes"):
        train(load_checkpoint="latest", seed=7)
    with pytest.raises(UserError, match=r"dataset.*--allow-changes"):
        train(load_checkpoint="latest", data=[make_dataset(rows=12, seed=5)])
    other = make_dataset(rows=12, seed=5)
    assert train(load_checkpoint="latest", seed=7, data=[other], max_steps=3, allow_changes=True) is not None


def test_a_checkpoint_of_another_engine_is_refused(train: Train, tmp_path: Path) -> None:
    assert isinstance(train(time_limit="0"), Stopped)
    states = tmp_path / "run" / "epoch-0_step-1" / "running_states.json"
    text = states.read_text().replace('"family": "native"', '"family": "colossal"')
    states.write_text(text.replace('"name": "native"', '"name": "zero"'))
    without_checksums(tmp_path / "run" / "epoch-0_step-1")
    with pytest.raises(
        UserError, match=r"was written by --plugin zero on 1 processes; .*modeling starts a new stage"
    ):
        train(load_checkpoint="latest")


def test_an_unwritable_save_directory_is_named(train: Train, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run"):
        train(output=tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("flag", "name"),
    [("tensorboard_dir", "file/board"), ("config_file", "file/c.yaml"), ("config_file", "directory")],
)
def test_other_places_that_cannot_be_written_are_named_before_anything_is_loaded(
    flag: str, name: str, train: Train, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "directory").mkdir()
    with pytest.raises(UserError, match=f"--{flag.replace('_', '-')} {tmp_path}"):
        train(**{flag: tmp_path / name})
    assert not (tmp_path / "run").exists()


def test_a_configuration_file_gives_what_the_command_line_does_not(
    tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    from llmforge.cli.compat import SPELLINGS
    from llmforge.recipes.commands import build

    file = tmp_path / "train.yaml"
    file.write_text(
        f"pretrained: {tiny_model}\ndataset: [{tiny_data}]\nsave_dir: s\nlr: 3e-5\ngrad-clip: 2\nbatch_size: 3\n"
    )
    given = {"learning_rate": 1e-4, "config": file}
    config, _ = build("train", given, SPELLINGS["train"])
    assert (config.learning_rate, config.gradient_clipping, config.micro_batch_size) == (1e-4, 2.0, 3)
    assert config.data == [tiny_data]
    for text, named in (
        ("lrr: 1", "lrr"),
        ("lr: high", "lr"),
        ("batch_size: 1\nmicro_batch_size: 2", "twice"),
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=named):
            build("train", {"config": file}, SPELLINGS["train"])


def test_a_dataset_that_is_cut_while_it_is_in_use_is_named(make_dataset: Callable[..., Path]) -> None:
    from llmforge.dataset.packed import PackedDataset

    data = PackedDataset([make_dataset(rows=8, parts=1, seed=9)])
    file = data._batches[0].file.path
    data.rows([0])
    os.truncate(file, 8)
    with pytest.raises(UserError, match=r"arrow was truncated from .* to 8 bytes while it was in use"):
        data.rows([0])
