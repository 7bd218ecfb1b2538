"""MMLU as its authors distribute it: `dev/SUBJECT_dev.csv`, `val/`, `test/`; six cells a row and no header."""

from pathlib import Path

from llmforge.errors import UserError
from llmforge.evaluate.tasks.layout import ENGLISH, Layout, take_shots
from llmforge.evaluate.tasks.question import Question, Subject, answer_index
from llmforge.evaluate.tasks.records import csv_rows
from llmforge.evaluate.tasks.splits import choose, files_of, find

CELLS = 6


def recognises(path: Path) -> bool:
    rows = (next(csv_rows(file), ("", []))[1] for file in files_of(path, (".csv",)))
    first = next((row for row in rows if row), [])
    return len(first) == CELLS and first[-1].strip() in tuple("ABCD")


def read(path: Path, shots: int) -> list[Subject]:
    subjects = []
    for name, parts in find(path, (".csv",)).items():
        if not {"test", "val", ""} & parts.keys():
            continue  # auxiliary_train
        tested, shown, _ = choose(parts, ("test", "val", ""))
        subject = Subject(name, [question for file in tested for question in _questions(file)])
        take_shots(
            subject, [question for file in shown for question in _questions(file)] if shots else [], shots
        )
        subjects.append(subject)
    return subjects


def _questions(file: Path) -> list[Question]:
    found = []
    for place, row in csv_rows(file):
        if len(row) != CELLS:
            raise UserError(
                f"{place}: {len(row)} cells, where MMLU has {CELLS}: the question, four options and the letter of the answer."
            )
        stem, *options, given = (cell.strip() for cell in row)
        if "" in options or not stem:
            raise UserError(f"{place}: the question or one of its four options is empty.")
        answer = answer_index(given, options, "ABCD", by_index=False)
        if answer is None:
            raise UserError(f"{place}: the answer {given!r} is none of A, B, C, D.")
        found.append(Question(stem, tuple(options), answer, place))
    return found


LAYOUT = Layout(recognises, read, lambda subject: ENGLISH, rank=1)
