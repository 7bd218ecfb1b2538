"""Accuracies on tasks while a model is trained: those of evaluate, whatever the batches and the ranks."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmforge.errors import UserError
from llmforge.evaluate.models import load_model
from llmforge.evaluate.tasks.likelihood import Scorer
from llmforge.evaluate.tasks.loading import load_tasks
from llmforge.evaluate.tasks.measure import measure_task
from llmforge.train.run import Stopped

LENGTH = 180
OPTIONS = ["bada", "gigugo", "kai", "lolou"]


@pytest.fixture(scope="module")
def data(make_dataset: Callable[..., Path]) -> Path:
    return make_dataset(rows=24, length=LENGTH)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven questions in two subjects, of two to four options, with a dev split."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, count in (("quiz_dev", 2), ("quiz", 11)):
        records = [
            {"question": "ba" * (1 + 3 * i % 17), "choices": OPTIONS[: 2 + i % 3], "answer": i % 2, "subject": f"s{i % 2}"}
            for i in range(count)
        ]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return folder / "quiz.jsonl"


def accuracies(save_dir: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["task_accuracy"] for line in lines if "task_accuracy" in line}


@pytest.mark.parametrize("micro_batch_size", [1, 5])
@pytest.mark.parametrize("scoring", [("letter",), ("answer", "bytes")])
@pytest.mark.parametrize("cross_document_attention", [False, True])
def test_they_are_those_of_evaluate(
    micro_batch_size: int, scoring: tuple[str, ...], cross_document_attention: bool,
    train: Callable[..., Any], tiny_model: Path, data: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    layout = replace(load_tasks([str(questions)], 0)[0].layout, scoring=scoring)
    monkeypatch.setattr("llmforge.evaluate.tasks.layouts.table.LAYOUT", layout)
    done = train(
        data=[data], eval_tasks=[f"q={questions}"], eval_interval=2, max_steps=3, learning_rate=3e-2,
        micro_batch_size=micro_batch_size, cross_document_attention=cross_document_attention,
    )  # fmt: skip
    found = accuracies(tmp_path / "run")
    assert sorted(found) == [0, 2, 3]
    for step, model in ((0, tiny_model), (3, done.output / "modeling")):
        loaded = load_model(model)
        (task,) = load_tasks([f"q={questions}"], 0, scoring)
        expected = measure_task(loaded, task, Scorer(loaded, 512), lambda *_: None)["all"]
        names = {name: "q" if len(scoring) == 1 else f"q {name}" for name in scoring}
        assert found[step] == {names[name]: pytest.approx(expected[name]["accuracy"]) for name in scoring}


def test_log_likelihoods_of_ranks_are_put_together_rightly(
    two_processes: Any, llmforge: Any, tiny_model: Path, data: Path, questions: Path, tmp_path: Path
) -> None:
    common = [
        *(
            "--model",
            tiny_model,
            "--data",
            data,
            "--eval-tasks",
            questions,
            "--eval-interval",
            1,
            "--max-steps",
            2,
        ),
        *("--mixed-precision", "fp32", "--save-interval", 0, "--eval-shots", 0, "--learning-rate", "3e-2"),
    ]
    one = llmforge("train", *common, "--micro-batch-size", 4, "--output", tmp_path / "one")
    assert "per cent of quiz right" in one.stderr
    two_processes(*common, "--micro-batch-size", 2, "--output", tmp_path / "two")
    assert accuracies(tmp_path / "two") == accuracies(tmp_path / "one")
    two_processes(*common, "--micro-batch-size", 2, "--plugin", "fsdp", "--output", tmp_path / "fsdp")
    assert accuracies(tmp_path / "fsdp") == accuracies(tmp_path / "one")


def test_a_run_that_stops_while_it_answers_answers_when_it_is_resumed(
    train: Callable[..., Any], data: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmforge.train.questions import Questions

    flags = {
        "data": [data],
        "eval_tasks": [str(questions)],
        "max_steps": 4,
        "eval_interval": 2,
        "save_interval": 0,
    }
    train(**flags, output=tmp_path / "whole")
    measure, calls = Questions.measure, []

    def stopped(self: Any, engine: Any, stop: Any) -> Any:
        calls.append(1)
        return None if len(calls) == 2 and _ask(stop) else measure(self, engine, stop)

    def _ask(stop: Callable[[], bool]) -> bool:
        stop.__self__.asked_to_stop = "enough"  # type: ignore[attr-defined]
        return stop()

    monkeypatch.setattr(Questions, "measure", stopped)
    assert isinstance(train(**flags), Stopped)
    assert sorted(accuracies(tmp_path / "run")) == [0]
    monkeypatch.undo()
    train(**flags, load_checkpoint="latest")
    assert accuracies(tmp_path / "run") == accuracies(tmp_path / "whole")


def test_a_prompt_longer_than_a_row_is_named_by_file_and_line(
    train: Callable[..., Any], data: Path, questions: Path, tmp_path: Path
) -> None:
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"question": "ba" * 300, "A": "x", "B": "y", "answer": "A"}) + "\n")
    with pytest.raises(
        UserError, match=r"long\.jsonl, line 1: the prompt has .* more than the 180 of a row of --data"
    ):
        train(data=[data], eval_tasks=[str(long)])
    with pytest.raises(UserError, match="the dev split of s0 has 1 questions"):
        train(data=[data], eval_tasks=[str(questions)], eval_shots=3)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
