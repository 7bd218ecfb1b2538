"""A run that ended early is not finished, and is continued bit for bit."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import figures, make_pairs

OFTEN = {"learning_rate": 1e-3, "micro_batch_size": 4, "num_epochs": 3, "save_interval": 2}
SAMPLED = {**OFTEN, "max_new_tokens": 6, "grpo_generations": 4, "num_epochs": 2}


@pytest.mark.parametrize(
    ("method", "end"),
    [
        pytest.param("dpo", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("dpo", signal.SIGTERM, marks=pytest.mark.stress),
        pytest.param("reward", signal.SIGKILL, marks=pytest.mark.stress),
        pytest.param("grpo", signal.SIGTERM, marks=pytest.mark.stress),
        pytest.param("grpo", signal.SIGKILL, marks=pytest.mark.stress),
    ],
)
def test_a_run_that_was_ended_is_not_finished_and_continues_bit_for_bit(
    train: Callable[..., Any], tmp_path: Path, method: str, end: signal.Signals
) -> None:
    data, options = make_pairs(tmp_path / "pairs.jsonl", 32), OFTEN
    if method == "grpo":
        (tmp_path / "rules.yaml").write_text("rules: [{share: '[a-m]'}]")
        options = {**SAMPLED, "rules": tmp_path / "rules.yaml"}
    train(method, "whole", data, **options)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            train(method, "cut", data, **options)
        os._exit(0)
    partial = tmp_path / ".cut.partial"

    def lines() -> int:
        file = partial / "metrics.jsonl"
        return len(file.read_text().splitlines()) if file.is_file() else 0

    while lines() < 5 and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, end)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)
    assert partial.is_dir()
    assert not (tmp_path / "cut").exists()
    train(method, "cut", data, **options)
    assert not partial.exists()
    one, other = (tmp_path / name / "modeling" / "model.safetensors" for name in ("whole", "cut"))
    assert one.read_bytes() == other.read_bytes()
    steps = [[line["loss"] for line in figures(tmp_path / name)] for name in ("whole", "cut")]
    assert steps[0] == steps[1]


@pytest.mark.stress
def test_a_ppo_run_that_was_ended_begins_again(train: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("trl.experimental.ppo")
    data, rules = make_pairs(tmp_path / "pairs.jsonl", 32), tmp_path / "rules.yaml"
    rules.write_text("rules: [{share: '[a-m]'}]")
    options = {
        "rules": rules,
        "max_steps": 4,
        "max_new_tokens": 6,
        "micro_batch_size": 4,
        "learning_rate": 1e-3,
    }
    train("ppo", "whole", data, **options)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            train("ppo", "cut", data, **options)
        os._exit(0)
    file = tmp_path / ".cut.partial" / "metrics.jsonl"
    while not (file.is_file() and file.read_text()) and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)
    assert not (tmp_path / "cut").exists()
    train("ppo", "cut", data, **options)
    one, other = (tmp_path / name / "modeling" / "model.safetensors" for name in ("whole", "cut"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.stress
@pytest.mark.parametrize("size", [3_000, 100_000, 300_000, 500_000])
def test_a_full_disk_is_a_sentence_and_the_same_command_goes_on(
    train: Callable[..., Any], tmp_path: Path, size: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Files may not be larger than `size`: the log of the metrics, weights or the state of the optimizer cannot be written."""
    import resource

    from llmforge.errors import InterruptionError

    data, options = make_pairs(tmp_path / "pairs.jsonl", 32), {**OFTEN, "save_interval": 1, "max_steps": 3}
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            train("dpo", "out", data, **options)
        except InterruptionError as error:
            print(error, flush=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    said = capfd.readouterr()
    assert "not enough disk space" in said.out
    assert "Traceback" not in said.err
    assert not (tmp_path / "out").exists()
    assert train("dpo", "out", data, **options).manifest.metrics["steps"] == 3
