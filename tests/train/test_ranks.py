"""Processes that disagree, stand still, or lose their launcher."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

# Starts `llmforge train` as torchrun's workers do, with other flags on rank 1.
WORKER = """
import os, runpy, sys
if os.environ["RANK"] == "1":
    sys.argv += sys.argv.pop(1).split()
else:
    del sys.argv[1]
runpy.run_module("llmforge", run_name="__main__")
"""


def start(script: Path, common: list[object], other: str = "") -> "subprocess.Popen[str]":
    script.write_text(WORKER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*torchrun, str(script), other, "train", *map(str, common)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
    )


@pytest.fixture
def common(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> list[object]:
    return [
        *("--pretrained", tiny_model, "--dataset", tiny_data, "--mixed-precision", "fp32", "--plugin", "ddp"),
        *("--save-dir", tmp_path / "run", "--num-epochs", 100_000, "--save-interval", 0),
        *("--skip-save-each-epoch",),
    ]


def workers(save_dir: Path) -> list[int]:
    """Processes of the training, by rank."""
    found: dict[int, int] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
            variables = (directory / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [int(one[5:]) for one in variables if one.startswith(b"RANK=")]
        if os.fsencode(save_dir) in words and ranks:
            found[ranks[0]] = int(directory.name)
    return [found[rank] for rank in sorted(found)]


def wait_for_steps(save_dir: Path, process: Any) -> None:
    deadline = time.monotonic() + 240
    while not (save_dir / "metrics.jsonl").is_file() or not (save_dir / "metrics.jsonl").read_bytes():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "named"),
    [("--seed 7", "--seed 7, rank 0 has 42"), ("--lr 0.5", "--learning-rate 0.5, rank 0 has 0.0003")],
)
def test_ranks_that_disagree_are_refused_before_the_first_step(
    other: str, named: str, common: list[object], tmp_path: Path
) -> None:
    process = start(tmp_path / "worker.py", common, other)
    _, said = process.communicate(timeout=300)
    assert process.returncode
    assert named in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_is_named_and_ends_the_run(
    rank: int, common: list[object], tmp_path: Path
) -> None:
    process = start(tmp_path / "worker.py", [*common, "--rank-timeout", 8])
    wait_for_steps(tmp_path / "run", process)
    stopped = workers(tmp_path / "run")[rank]
    os.kill(stopped, signal.SIGSTOP)
    said = ""
    assert process.stderr is not None
    for line in process.stderr:
        said += line
        if "sent no heartbeat" in line:
            os.kill(stopped, signal.SIGCONT)  # torchrun would wait 30 s before it kills it
    assert process.wait(120)
    assert f"rank {rank} (process {stopped} on " in said
    assert "sent no heartbeat for 8 seconds (--rank-timeout)" in said


@pytest.mark.slow
def test_workers_end_at_once_when_torchrun_is_killed(common: list[object], tmp_path: Path) -> None:
    process = start(tmp_path / "worker.py", common)
    wait_for_steps(tmp_path / "run", process)
    assert len(workers(tmp_path / "run")) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while workers(tmp_path / "run"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
