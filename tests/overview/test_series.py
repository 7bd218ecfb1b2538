"""Curves of any length, from metrics files of any kind."""

import json
import math
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmforge.overview.metrics import LONGEST_LINE, MOST_SERIES, read_metrics
from llmforge.overview.series import MOST, Series

VALUES = st.lists(st.floats(-1e6, 1e6) | st.just(math.nan) | st.just(math.inf), max_size=60)


@given(VALUES, st.integers(1, 60))
def test_a_curve_is_bounded_and_keeps_its_ends_and_its_mean(values: list[float], times: int) -> None:
    series = Series()
    for step, value in enumerate(values * times):
        series.add(step, 10 * step, value)
    finite = [value for value in values * times if math.isfinite(value)]
    line = series.line(by_tokens=False)
    assert series.count == len(finite)
    if not finite:
        assert line == []
        return
    assert (series.first, series.last, series.least) == (finite[0], finite[-1], min(finite))
    assert len(line) <= 2 * MOST + 1
    assert [x for x, _ in line] == sorted(x for x, _ in line)
    assert [x for x, _ in series.line(by_tokens=True)] == pytest.approx([10 * x for x, _ in line])
    weights = [series.size] * len(series.points) + [len(finite) - series.size * len(series.points)]
    mean = sum(weight * y for weight, (_, y) in zip(weights, line, strict=False)) / len(finite)
    assert mean == pytest.approx(sum(finite) / len(finite), abs=1e-3)


def lines(count: int) -> str:
    return "".join(
        json.dumps({"step": n, "loss": 2 + 1 / n, "loss_by_category": {"zh": 1.5}, "applied": n % 10 != 0,
                    "tokens": 100, "bytes": 300, "seconds": 0.5, "model_flops_per_second": 1e9}) + "\n"
        for n in range(1, count + 1)
    )  # fmt: skip


def test_what_is_not_whole_is_left_out_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    damaged = b'\xff\xfe\n[1]\n{"step": "x"}\n{"step": true, "loss": 1}\n' + b"[" * (2 * LONGEST_LINE) + b"\n"
    infinite = b'{"step": 21, "loss": NaN, "tokens": -3, "seconds": 1e999, "x": ' + b"9" * 400 + b"}\n"
    file.write_bytes(damaged + lines(20).encode() + infinite + b'{"step": 22, "loss": 2.')
    found = read_metrics(file)
    assert (found.damaged, found.steps, found.last_step) == (5, 21, 21)
    assert (found.tokens, found.bytes, found.seconds, found.flops) == (2000, 6000, 10.0, 1e10)
    assert (found.skipped, found.skipped_steps) == (2, [10, 20])
    loss = found.of("loss")
    assert loss is not None
    assert (loss.count, loss.last) == (20, 2.05)
    assert read_metrics(file, after=15).steps == 6


def test_long_files_take_no_more_memory_than_short_ones(tmp_path: Path) -> None:
    peaks = []
    for count in (3_000, 15_000):
        file = tmp_path / f"{count}.jsonl"
        file.write_text(lines(count))
        tracemalloc.start()
        assert read_metrics(file).steps == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_ever_new_figures_do_not_fill_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps({"step": 1, "loss": 1.0, "by": {str(n): n for n in range(2000)}}) + "\n")
    found = read_metrics(file)
    assert sum(map(len, found.series.values())) == MOST_SERIES
    assert found.left_out == 2001 - MOST_SERIES


def test_a_pipe_in_the_place_of_metrics_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert read_metrics(tmp_path / "metrics.jsonl").steps == 0
