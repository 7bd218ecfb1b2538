"""Processes that disagree, stand still, or lose their launcher."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from warm import TERMINAL

ROOT = Path(__file__).parents[1]


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
    other: str, named: str, common: list[object], start_two: Any, tmp_path: Path
) -> None:
    ranks = start_two(common, other.split())
    said = "".join(process.communicate(300)[1] for process in ranks)
    assert all(process.returncode for process in ranks)
    assert named in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_is_named_and_ends_the_run(
    rank: int, common: list[object], warm: Any, tmp_path: Path
) -> None:
    """The ranks meet in a store of their parent's, as under torchrun."""
    words = [str(ROOT / "ranks.py"), "2", "train", *map(str, common), "--rank-timeout", "8"]
    process = warm.start(words, {**os.environ, **TERMINAL})
    wait_for_steps(tmp_path / "run", process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    stopped, other = int(children[rank]), children[1 - rank]
    os.kill(stopped, signal.SIGSTOP)
    deadline = time.monotonic() + 120
    while Path("/proc", other).exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(stopped, signal.SIGKILL)
    said = process.communicate(120)[1]
    assert process.returncode == 1
    assert f"rank {rank} (process {stopped} on " in said
    assert "sent no heartbeat for 8 seconds (--rank-timeout)" in said


@pytest.mark.slow
def test_workers_end_at_once_when_torchrun_is_killed(common: list[object], tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*torchrun, "-m", "llmforge", "train", *map(str, common)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
    )
    wait_for_steps(tmp_path / "run", process)
    assert len(workers(tmp_path / "run")) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while workers(tmp_path / "run"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
