"""Results of tasks as a table: a subject a row, the models side by side."""

from collections.abc import Mapping
from typing import Any

MEAN, ALL = "mean of subjects", "all questions"


def task_tables(results: Mapping[str, Mapping[str, Any]]) -> list[tuple[list[str], list[list[str]]]]:
    """One table for each task: accuracies in per cent with their standard errors, by subject, the mean of the subjects,
    and all questions together. Nothing where `results[model][label]` has no task.
    """
    first = next(iter(results.values()))
    return [_table(label, results) for label, one in first.items() if "subjects" in one]


def _table(label: str, results: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
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
