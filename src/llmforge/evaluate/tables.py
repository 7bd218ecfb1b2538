"""Results of texts, tasks and problems as tables, the models side by side."""

from collections.abc import Mapping
from typing import Any

MEAN, ALL = "mean of subjects", "all questions"


Cells = tuple[list[str], list[list[str]]]
Results = dict[str, dict[str, dict[str, Any]]]


def tables(results: Results) -> list[Cells]:
    """(header, rows) of text cells, as many tables as there are kinds of results.

    Of texts: a model a row, bits per byte and tokens per character for each label. Of the others: figures with their standard errors.
    """
    if not results:
        return []
    labels = [label for label, one in next(iter(results.values())).items() if "bits_per_byte" in one]
    header = ["model", *(f"{label} {what}" for label in labels for what in ("bits/byte", "tokens/char"))]
    rows = [
        [name, *(cell for label in labels for cell in _cells(result[label]))]
        for name, result in results.items()
    ]
    return [*([(header, rows)] if labels else []), *_asked_tables(results)]


def _asked_tables(results: Results) -> list[Cells]:
    """One table for each task: figures with their standard errors. Nothing where `results[model][label]` is of documents.

    Of questions: accuracies in per cent by subject, the mean of the subjects, and all questions together.
    """
    kinds = {"subjects": _table, "harness": _harness, "code": _code}
    first = next(iter(results.values()))
    return [
        make(label, results) for label, one in first.items() for kind, make in kinds.items() if kind in one
    ]


def _harness(label: str, results: Results) -> Cells:
    """A task of lm-evaluation-harness: a metric a row, in the units of the harness."""
    first = next(iter(results.values()))[label]
    shots = sorted(set(first["shots"].values()))
    named = f"{shots[0]} shots" if len(shots) == 1 else "shots of each task"
    rows = [
        [f"{task} {metric}", *(_plain(result[label]["rows"][task][metric]) for result in results.values())]
        for task, metrics in first["rows"].items()
        for metric in metrics
    ]
    return [f"{label} ({named})", *results], rows


def _code(label: str, results: Results) -> Cells:
    first = next(iter(results.values()))[label]
    header = [f"{label} ({first['problems']:,} problems, {first['samples']:,} samples)", *results]
    metrics = [key for key in first if key.startswith("pass@")]
    return header, [
        [
            metric,
            *(
                _percent({"accuracy": result[label][metric]["value"], **result[label][metric]})
                for result in results.values()
            ),
        ]
        for metric in metrics
    ]


def _plain(part: Mapping[str, float | None]) -> str:
    error = part["stderr"]
    return f"{part['value'] or 0:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _table(label: str, results: Results) -> Cells:
    one = next(iter(results.values()))[label]
    scorings = list(one["mean"])
    several = len(scorings) > 1
    header = [
        f"{label} ({one['shots']} shots)",
        "questions",
        *(f"{model} {scoring}" if several else model for model in results for scoring in scorings),
    ]
    parts = {
        name: [result[label]["subjects"][name] for result in results.values()] for name in one["subjects"]
    }
    if len(parts) > 1:
        parts[MEAN] = [result[label]["mean"] for result in results.values()]
        parts[ALL] = [result[label]["all"] for result in results.values()]
    rows = [
        [name, _count(of_models[0]), *(_percent(part[scoring]) for part in of_models for scoring in scorings)]
        for name, of_models in parts.items()
    ]
    return header, rows


def _count(part: Mapping[str, Any]) -> str:
    return f"{part['questions']:,}" if "questions" in part else ""


def _percent(part: Mapping[str, float | None]) -> str:
    error = part["stderr"]
    return f"{100 * (part['accuracy'] or 0):.1f}" + (f" ± {100 * error:.1f}" if error is not None else "")


def _cells(bits: dict[str, Any]) -> tuple[str, str]:
    return f"{bits['bits_per_byte']:.4f}", f"{bits['tokens_per_character']:.3f}"
