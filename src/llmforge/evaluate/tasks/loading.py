"""The words of --tasks to tasks: `[NAME=]PATH`, where NAME is that of a layout, or a label."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmforge.console import warn
from llmforge.corpus.sources import labeled, own_label, printable
from llmforge.errors import UsageError, UserError
from llmforge.evaluate.tasks import find, names
from llmforge.evaluate.tasks.layout import Layout
from llmforge.evaluate.tasks.question import Subject


@dataclass(frozen=True)
class Task:
    """The questions behind one label. `scoring` is what is measured of them."""

    label: str
    kind: str
    layout: Layout
    subjects: list[Subject]
    scoring: tuple[str, ...]


def load_tasks(
    words: Sequence[str], shots: int, scoring: Sequence[str] = (), max_questions: int | None = None
) -> list[Task]:
    """Reads every task; raises `UserError` with file and line for what cannot be asked as it is, and warns of questions
    that are passed over. `max_questions` keeps the first ones of each subject.
    """
    tasks = []
    for label, path in labeled(words):
        if not path.exists():
            known = f" ({', '.join(names())})" if label is None else ""
            raise UserError(
                f"--tasks {printable(path)} does not exist; give [NAME=]PATH of a file or directory{known}."
            )
        kind = label if label in names() else _recognised(path)
        layout = find(kind)
        subjects = layout.read(path, shots)
        _report(subjects, label or own_label(path))
        subjects = [
            _checked(subject, shots, path, max_questions) for subject in subjects if subject.questions
        ]
        if not subjects:
            raise UserError(
                f"--tasks {printable(path)}: there is no question in it that has one answer among options."
            )
        tasks.append(Task(label or own_label(path), kind, layout, subjects, tuple(scoring) or layout.scoring))
    labels = [task.label for task in tasks]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise UsageError(f"--tasks has {twice} twice; give LABEL=PATH.")
    return tasks


def _recognised(path: Path) -> str:
    """The name of the first layout that recognises the path."""
    ranked = sorted(names(), key=lambda name: find(name).rank)
    return next(name for name in ranked if find(name).recognises(path))


def _checked(subject: Subject, shots: int, path: Path, max_questions: int | None) -> Subject:
    if len(subject.shots) < shots:
        has = f"{len(subject.shots)} questions" if subject.shots else "no questions"
        raise UserError(
            f"{printable(path)}: the dev split of {subject.name} has {has}, and --shots {shots} asks for more; "
            f"give at most --shots {len(subject.shots)}, or a file {subject.name}_dev beside it."
        )
    return replace(subject, questions=subject.questions[:max_questions])


def _report(subjects: Sequence[Subject], label: str) -> None:
    """One line for each reason for which questions are passed over."""
    total: dict[str, tuple[int, str]] = {}
    for subject in subjects:
        for reason, (count, place) in subject.passed_over.items():
            before, first = total.get(reason, (0, place))
            total[reason] = (before + count, first)
    for reason, (count, place) in total.items():
        warn(f"{label}: {count:,} questions {reason} are passed over, the first one at {place}.")
