"""`llmforge report` of a real training: stopped, resumed, finished."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmforge.overview.options import ReportOptions
from llmforge.overview.page import report
from llmforge.train.retention import RetentionOptions


def test_a_training_is_reported_stopped_and_finished(
    train: Callable[..., Any], tiny_data: Path, tmp_path: Path
) -> None:
    common = {"max_steps": 4, "retention": RetentionOptions(ema=0.5)}
    options = ReportOptions(paths=[tmp_path / "run"], output=tmp_path / "r.md")
    train(**common, time_limit="0")
    stopped = report(options)["trainings"]["run"]
    text = options.output.read_text()
    assert (stopped["finished"], stopped["steps"], stopped["planned_steps"]) == (False, 1, 4)
    assert "| state | not finished: step 1 of 4 |" in text
    assert f"| data | {tiny_data} |" in text
    train(**common, load_checkpoint="latest", eval_data=[tiny_data], eval_interval=2)
    finished = report(options)["trainings"]["run"]
    text = options.output.read_text()
    assert (finished["finished"], finished["steps"]) == (True, 4)
    assert finished["tokens"] > stopped["tokens"]
    assert finished["held_out"]["all"]["last"] < finished["held_out"]["all"]["first"]
    assert finished["held_out_average"]["all"]["last"] != finished["held_out"]["all"]["last"]
    assert finished["processes"] == 1
    for line in (
        "| run | started |",
        "| run | resumed |",
        "| prepare-data |",
        "| init-model |",
        "| zh, moving average |",
    ):
        assert line in text, line
