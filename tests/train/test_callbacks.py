"""A callback is one class and a line that registers it; the next batch is read while the engine works."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmforge.backends.torch.engine import NativeEngine
from llmforge.errors import UserError
from llmforge.train.callbacks import CALLBACKS, Callback, Step
from llmforge.train.prefetch import Batches
from llmforge.train.run import Stopped

Train = Callable[..., Any]


class Documents(Callback):
    """Counts documents over all ranks, asks to stop after some steps, and remembers what it counted."""

    name = "documents"
    stop_after = 0
    closed: list[str]

    def start(self) -> None:
        self.count = getattr(self, "count", 0)

    def poll(self) -> None:
        if self.run.position.step == self.stop_after:
            self.run.asked_to_stop = "enough"

    def votes(self, step: Step) -> np.ndarray:
        batches = step.batch.micro_batches
        return np.array([sum(len(row) for batch in batches for row in batch.lengths)], dtype=np.float64)

    def agreed(self, sums: np.ndarray) -> None:
        self.count += int(sums[0])

    def after_step(self, step: Step) -> bool:
        step.figures["documents"] = self.count
        return False

    def summary(self) -> dict[str, Any]:
        return {"documents": self.count}

    def close(self) -> None:
        self.closed.append("closed")

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def lines(save_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> type[Documents]:
    monkeypatch.setattr(Documents, "closed", [], raising=False)
    # Before those that write figures.
    monkeypatch.setattr("llmforge.train.trainer.CALLBACKS", [Documents, *CALLBACKS])
    return Documents


def test_a_callback_adds_figures_agrees_stops_and_resumes(
    added: type[Documents], train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(max_steps=4, output=tmp_path / "whole")
    counted = [line["documents"] for line in lines(tmp_path / "whole")]
    assert counted == sorted(counted)
    assert whole.manifest.metrics["documents"] == counted[-1]
    monkeypatch.setattr(added, "stop_after", 2)
    stopped = train(max_steps=4)
    assert isinstance(stopped, Stopped)
    assert (stopped.step, stopped.reason) == (2, "enough")
    monkeypatch.setattr(added, "stop_after", 0)
    train(max_steps=4, load_checkpoint="latest")
    assert [line["documents"] for line in lines(tmp_path / "run")] == counted
    assert added.closed == ["closed"] * 3


def test_a_damaged_state_of_a_callback_is_named(
    added: type[Documents], train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(added, "stop_after", 1)
    monkeypatch.setattr(added, "state_dict", lambda self: {"counts": 1})
    assert isinstance(train(), Stopped)
    with pytest.raises(UserError, match=r"running_states.json is damaged \(documents"):
        train(load_checkpoint="latest")


def test_a_checkpoint_without_the_state_of_a_callback_resumes(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(train(time_limit="0"), Stopped)
    monkeypatch.setattr(Documents, "closed", [], raising=False)
    monkeypatch.setattr("llmforge.train.trainer.CALLBACKS", [Documents, *CALLBACKS])
    train(load_checkpoint="latest", max_steps=2)
    assert lines(tmp_path / "run")[1]["documents"] > 0


def test_one_batch_is_read_in_advance_by_a_thread_and_no_more(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, step, begun = Batches._read, NativeEngine.train_step, threading.Semaphore(0)
    names: list[str] = []
    ahead: list[int] = []

    def reading(self: Batches) -> Any:
        names.append(threading.current_thread().name)
        begun.release()
        return read(self)

    def working(self: NativeEngine, *words: Any) -> Any:
        # The batch of this step was taken; the next one begins to be read now, though this step has not ended.
        wanted = 2 if not ahead else 1
        if len(ahead) < 4:
            for _ in range(wanted):
                assert begun.acquire(timeout=60)
        ahead.append(len(names) - len(ahead))
        return step(self, *words)

    monkeypatch.setattr(Batches, "_read", reading)
    monkeypatch.setattr(NativeEngine, "train_step", working)
    train(max_steps=5)
    assert all(name.startswith("reading") for name in names)
    assert ahead == [2, 2, 2, 2, 1]  # the last step reads nothing in advance


def test_what_the_thread_meets_is_said_as_if_there_were_none(
    train: Train, make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset(rows=40, parts=1)
    step = NativeEngine.train_step

    def working(self: NativeEngine, *words: Any) -> Any:
        result = step(self, *words)
        if self.steps == 2:
            for file in data.rglob("data-*.arrow"):
                with file.open("r+b") as opened:
                    opened.truncate(100)
        return result

    monkeypatch.setattr(NativeEngine, "train_step", working)
    # Rows are read before the cut, so that no page of a file that has become shorter is touched.
    with pytest.raises(
        UserError, match=r"was truncated from .* bytes while it was in use; prepare the data again"
    ):
        train(data=[data], micro_batch_size=4, save_interval=1)
    assert 2 <= len(lines(tmp_path / "run")) <= 3


def test_files_are_called_by_stage() -> None:
    """What stops or refuses a step comes before what adds figures, and what saves comes last."""
    assert [kind.__name__ for kind in CALLBACKS] == [
        *("Signals", "TimeLimit", "Guards", "NewTokens", "Throughput", "Metrics", "Progress", "Evaluation"),
        "Checkpoints",
    ]
