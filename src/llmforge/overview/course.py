"""How trainings went: their figures side by side, curves, costs and events."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmforge.options import Option, options_of
from llmforge.overview.series import Series
from llmforge.overview.training import Training
from llmforge.report.blocks import Block, Curves, Heading, Paragraph, Points, Table
from llmforge.report.numbers import duration, short
from llmforge.train.options import TrainOptions

MOST_LINES = 12  # in a chart
AVERAGE = "ema_"  # before the figures of the moving average
LOSS, HELD_OUT, UTILIZATION = "loss", "holdout_bits_per_byte", "model_flops_utilization"
# (figure, title, axis). Figures by category have a line for each; of several trainings their totals alone are compared.
CHARTS = (
    (LOSS, "Training loss", "nats per token"),
    ("loss_by_category", "Training loss by category", "nats per token"),
    ("loss_by_token", "Training loss on old and new tokens", "nats per token"),
    (HELD_OUT, "Held-out data", "bits per byte"),
    ("task_accuracy", "Tasks", "accuracy"),
    ("learning_rate", "Learning rate", "learning rate"),
    ("gradient_norm", "Gradient norm before clipping", "L2 norm"),
    ("new_row_norm", "Mean norm of new embedding rows", "L2 norm"),
    ("new_tokens_never_seen", "New tokens never seen", "tokens"),
    ("tokens_per_second", "Throughput", "tokens per second"),
    (UTILIZATION, "MFU", "fraction of the peak"),
    ("peak_memory_bytes", "Peak memory", "bytes"),
)


def course(trainings: Mapping[str, Training]) -> list[Block]:
    """Figures, options, curves and costs of trainings by their names."""
    return [
        Heading("Trainings"),
        _summary(trainings),
        *_options(trainings),
        Heading("Curves"),
        *_curves(trainings),
        Heading("Cost"),
        *_cost(trainings),
    ]


def figures(training: Training) -> dict[str, Any]:
    """What is shown of one training, as values; None where it is not known."""
    metrics, loss = training.metrics, training.metrics.of(LOSS)
    utilization = metrics.of(UTILIZATION)
    return {
        "finished": training.manifest is not None,
        "steps": metrics.last_step or _whole(training.counters.get("steps")),
        "planned_steps": training.planned,
        "tokens": metrics.tokens,
        "bytes": metrics.bytes,
        "loss": None if loss is None or not loss.count else loss.last,
        "held_out": _ends(metrics.series.get(HELD_OUT, {})),
        "held_out_average": _ends(metrics.series.get(AVERAGE + HELD_OUT, {})),
        "task_accuracy": {name: one.last for name, one in metrics.series.get("task_accuracy", {}).items()},
        "seconds": metrics.seconds,
        "tokens_per_second": metrics.tokens / metrics.seconds if metrics.seconds else None,
        "model_flops": metrics.flops,
        "mfu": None if utilization is None or not utilization.count else _mean(utilization),
        "peak_memory_bytes": _whole(training.counters.get("peak_memory_bytes")) or _largest(training),
        "processes": _whole(training.counters.get("processes")),
        "skipped_steps": metrics.skipped,
        "spikes": _whole(training.counters.get("spikes")),
        "rollbacks": _whole(training.counters.get("rollbacks")),
    }


def state(training: Training) -> str:
    """Finished, or how far it is."""
    if training.manifest:
        return "finished"
    step, planned = training.metrics.last_step, training.planned
    return f"not finished: step {step:,}" + (f" of {planned:,}" if planned else "")


def _summary(trainings: Mapping[str, Training]) -> Table:
    values = {name: figures(one) for name, one in trainings.items()}
    rows: list[tuple[str, Callable[[Training, dict[str, Any]], str]]] = [
        ("directory", lambda one, _: str(one.path)),
        ("state", lambda one, _: state(one)),
        ("started from", lambda one, _: one.start or ""),
        ("data", lambda one, _: _text(one.value("data"))),
        ("held-out data", lambda one, _: _text(one.value("eval_data"))),
        ("trained", lambda one, _: _text(one.value("trainable"))),
        ("steps", lambda _, found: _shown(found["steps"])),
        ("tokens trained on", lambda _, found: _shown(found["tokens"])),
        ("bytes of text", lambda _, found: _shown(found["bytes"])),
        ("last loss, nats per token", lambda _, found: _shown(found["loss"], ".4f")),
    ]
    for key, whose in (("held_out", ""), ("held_out_average", ", moving average")):
        labels = dict.fromkeys(label for found in values.values() for label in found[key])
        for label in sorted(labels, key=lambda label: label != "all")[:MOST_LINES]:
            for what in ("first", "lowest", "last") if label == "all" else ("last",):
                of = "" if label == "all" else f" of {label}"
                rows.append((f"held-out bits per byte{of}, {what}{whose}", _held_out(key, label, what)))
    tasks = dict.fromkeys(name for found in values.values() for name in found["task_accuracy"])
    rows += [(f"{task}, last, %", _accuracy(task)) for task in list(tasks)[:MOST_LINES]]
    return _side_by_side(trainings, rows, values)


def _cost(trainings: Mapping[str, Training]) -> list[Block]:
    rows: list[tuple[str, Callable[[Training, dict[str, Any]], str]]] = [
        ("backend", lambda one, _: _text(one.counters.get("plugin") or one.value("plugin"))),
        ("processes", lambda _, found: _shown(found["processes"])),
        ("time in steps", lambda _, found: duration(found["seconds"]) if found["seconds"] else ""),
        ("process hours in steps", _process_hours),
        ("model FLOPs", lambda _, found: f"{found['model_flops']:.3g}" if found["model_flops"] else ""),
        ("tokens per second", lambda _, found: _shown(found["tokens_per_second"], ",.1f")),
        ("MFU, mean, %", lambda _, found: _percent(found["mfu"])),
        ("peak memory of a process, GB", lambda _, found: _gigabytes(found["peak_memory_bytes"])),
        (
            "steps repeated after resumes",
            lambda one, _: _shown(sum(x.metrics.steps for x in one.abandoned)),
        ),
        ("time of the repeated steps", lambda one, _: _lost(one)),
    ]
    note = Paragraph(
        "Steps alone: loading, evaluations and saving are not recorded, nor are steps that a kill left without a checkpoint."
    )
    return [_side_by_side(trainings, rows, {name: figures(one) for name, one in trainings.items()}), note]


def _options(trainings: Mapping[str, Training]) -> list[Block]:
    """Options that have another value than their default in some training."""
    rows = []
    for one in options_of(TrainOptions):
        values = [
            training.config.get(one.name, training.arguments.get(one.argument))
            for training in trainings.values()
        ]
        if one.decides and any(value not in (None, [], _plain(one)) for value in values):
            rows.append([one.flag, *(_text(value) for value in values)])
    if not rows:
        return []
    text = "Options that decide the result and differ from their defaults in at least one training."
    return [
        Heading("Options", 3),
        Paragraph(text),
        Table(["option", *trainings], rows, range(len(trainings) + 1)),
    ]


def _curves(trainings: Mapping[str, Training]) -> list[Block]:
    several = len(trainings) > 1
    blocks: list[Block] = []
    sizes = [
        series.size
        for one in trainings.values()
        for labels in one.metrics.series.values()
        for series in labels.values()
    ]
    if max(sizes, default=1) > 1:
        blocks.append(
            Paragraph(
                f"Points are means of up to {max(sizes):,} steps; the tables have the exact last values."
            )
        )
    for figure, title, axis in CHARTS:
        lines: dict[str, Points] = {}
        for name, training in trainings.items():
            for prefix, suffix in (("", ""), (AVERAGE, "moving average")):
                for label, series in training.metrics.series.get(prefix + figure, {}).items():
                    parts = [name if several else "", label if label != "all" or not several else "", suffix]
                    if several and label not in ("", "all") and figure != "task_accuracy":
                        continue  # the categories of several would be too many
                    lines[", ".join(filter(None, parts)) or title] = series.line(by_tokens=several)
        lines = {name: line for name, line in lines.items() if line}
        if figure.startswith("loss_by") and len(lines) < 2:
            continue
        if figure == "new_tokens_never_seen" and not any(
            value for line in lines.values() for _, value in line
        ):
            continue
        if lines:
            shown = dict(list(lines.items())[:MOST_LINES])
            more = (
                f" ({len(lines) - MOST_LINES:,} more lines are left out)" if len(lines) > MOST_LINES else ""
            )
            blocks.append(Curves(title + more, "tokens trained on" if several else "step", axis, shown))
    return blocks or [Paragraph("There are no metrics yet.")]


def events(trainings: Mapping[str, Training]) -> list[Block]:
    """Starts, resumes, skipped steps, and what could not be read."""
    rows = []
    for name, one in trainings.items():
        found = figures(one)
        for number, start in enumerate(one.starts):
            rows.append([name, "resumed" if number else "started", f"{start:%Y-%m-%d %H:%M:%S} UTC"])
        for part in one.abandoned:
            back = f"continued from {part.resumed}" if part.resumed else "began again"
            rows.append([name, "moved newer checkpoints aside", f"{back}, {part.at}"])
        if one.metrics.skipped:
            steps = ", ".join(map(str, one.metrics.skipped_steps))
            more = ", ..." if one.metrics.skipped > len(one.metrics.skipped_steps) else ""
            rows.append([name, "skipped steps", f"{one.metrics.skipped:,}: {steps}{more}"])
        for what in ("spikes", "rollbacks"):
            if found[what]:
                rows.append([name, what, f"{found[what]:,}"])
        if (one.path / "bad_rows.jsonl").is_file():
            rows.append([name, "ended after too many bad steps", str(one.path / "bad_rows.jsonl")])
        if one.checkpoints:
            rows.append(
                [name, "checkpoints there now", f"{len(one.checkpoints):,}, the newest {one.checkpoints[-1]}"]
            )
        rows += [[name, "could not be read", problem] for problem in one.problems]
    return [Table(["training", "what", ""], rows, (0, 1, 2))] if rows else [Paragraph("None.")]


def _side_by_side(
    trainings: Mapping[str, Training],
    rows: Sequence[tuple[str, Callable[[Training, dict[str, Any]], str]]],
    values: Mapping[str, dict[str, Any]],
) -> Table:
    """A training a column; lines that no training fills are left out."""
    cells = [[name, *(make(one, values[key]) for key, one in trainings.items())] for name, make in rows]
    return Table(["", *trainings], [row for row in cells if any(row[1:])])


def _ends(labels: Mapping[str, Series]) -> dict[str, dict[str, float]]:
    """First, lowest and last value of each label."""
    return {
        label: {"first": one.first, "lowest": one.least, "last": one.last}
        for label, one in labels.items()
        if one.count
    }


def _held_out(key: str, label: str, what: str) -> Callable[[Training, dict[str, Any]], str]:
    return lambda _, found: _shown(found[key].get(label, {}).get(what), ".4f")


def _accuracy(task: str) -> Callable[[Training, dict[str, Any]], str]:
    return lambda _, found: _percent(found["task_accuracy"].get(task))


def _process_hours(_: Training, found: dict[str, Any]) -> str:
    processes = found["processes"]
    return short(found["seconds"] * processes / 3600) if processes and found["seconds"] else ""


def _lost(training: Training) -> str:
    seconds = sum(one.metrics.seconds for one in training.abandoned)
    return duration(seconds) if seconds else ""


def _plain(one: Option) -> Any:
    return one.default if isinstance(one.default, int | float | str | bool) else None


def _text(value: Any) -> str:
    if value is None or value == []:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _shown(value: float | None, form: str = ",") -> str:
    return "" if value is None or (value == 0 and form == ",") else f"{value:{form}}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _gigabytes(value: float | None) -> str:
    return f"{value / 1e9:.2f}" if value else ""


def _mean(series: Series) -> float:
    values = [value for _, value in series.line(by_tokens=False)]
    return math.fsum(values) / len(values)


def _largest(training: Training) -> float | None:
    series = training.metrics.of("peak_memory_bytes")
    return series.last if series and series.count else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
