"""`metrics.jsonl` of a training, finished, running or killed: curves and sums."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from llmforge.overview.series import Series

LONGEST_LINE = 1 << 20  # bytes
MOST_SERIES = 256  # of all figures and categories
MOST_NAMED = 20  # skipped steps that are named
POSITION = frozenset({"step", "epoch", "sample", "applied"})


@dataclass
class Metrics:
    """`series[figure][label]`, the label empty where the figure is one number. `damaged` counts lines that cannot be read,
    `left_out` values of more figures than are kept. Sums are over the steps read.
    """

    series: dict[str, dict[str, Series]] = field(default_factory=dict)
    steps: int = 0
    last_step: int = 0
    tokens: int = 0
    bytes: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    skipped: int = 0
    skipped_steps: list[int] = field(default_factory=list)
    damaged: int = 0
    left_out: int = 0

    def of(self, figure: str, label: str = "") -> Series | None:
        """The series, None where nothing was recorded."""
        return self.series.get(figure, {}).get(label)


def read_metrics(file: Path, after: int = -1) -> Metrics:
    """The figures of the lines of `file` after step `after`; of no line where there is no such file. A last line that is
    not whole is being written, or was when the training was killed.
    """
    found = Metrics()
    if not file.is_file():  # also not a pipe, which would never end
        return found
    with file.open("rb") as lines:
        for line in _lines(lines):
            figures = _figures(line)
            if figures is None:
                found.damaged += line.endswith(b"\n") or len(line) >= LONGEST_LINE
            elif figures["step"] > after:
                _add(found, figures)
    return found


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(LONGEST_LINE):
        whole = line
        while len(whole) == LONGEST_LINE and not whole.endswith(
            b"\n"
        ):  # the rest of a line that is no step's
            whole = file.readline(LONGEST_LINE)
        yield line


def _figures(line: bytes) -> dict[str, Any] | None:
    try:
        figures = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = figures.get("step") if isinstance(figures, dict) else None
    ours = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 1 << 53
    return figures if ours else None


def _add(found: Metrics, figures: dict[str, Any]) -> None:
    step = figures["step"]
    found.last_step = max(found.last_step, step)
    tokens, seconds = _number(figures.get("tokens")), _number(figures.get("seconds"))
    if step and "loss" in figures:
        found.steps += 1
        found.tokens += int(tokens)
        found.bytes += int(_number(figures.get("bytes")))
        found.seconds += seconds
        found.flops += seconds * _number(figures.get("model_flops_per_second"))
        if figures.get("applied") is False:
            found.skipped += 1
            found.skipped_steps += [step] * (len(found.skipped_steps) < MOST_NAMED)
    for name, value in figures.items():
        if name in POSITION:
            continue
        for label, number in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(number, int | float) and not isinstance(number, bool):
                _series(found, name, label, step, number)


def _series(found: Metrics, name: str, label: str, step: int, value: float) -> None:
    labels = found.series.setdefault(name, {})
    if label not in labels:
        if sum(map(len, found.series.values())) >= MOST_SERIES:
            found.left_out += 1
            return
        labels[label] = Series()
    try:
        labels[label].add(step, found.tokens, float(value))
    except OverflowError:  # a whole number of hundreds of digits
        found.left_out += 1


def _number(value: Any) -> float:
    fine = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return value if fine and math.isfinite(value) and value > 0 else 0.0
