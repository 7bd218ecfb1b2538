"""GAOKAO-Bench as its authors distribute it: JSON files with `keywords` and a list `example` of year, category, question,
answer (or standard_answer), analysis, index and score. The options stand in the text of the question.

Only questions with one answer among lettered options can be asked here: those with several answers, several questions to a
text, or free answers are passed over. There is no dev split.
"""

import re
from pathlib import Path
from typing import Any

from llmforge.corpus.sources import printable
from llmforge.errors import UserError
from llmforge.evaluate.tasks.layout import Chinese, Layout, Style
from llmforge.evaluate.tasks.question import LETTERS, Question, Subject
from llmforge.evaluate.tasks.records import json_list

MARK = re.compile(r"(?<![A-Za-z0-9\\{$])([A-G])\s*[.．、]\s*")
ANSWERS = ("answer", "standard_answer")


class Gaokao(Chinese):
    """The question as it is printed, as ColossalEval asks it."""

    def header(self, subject: str) -> str:
        return ""

    def listed(self, question: Question) -> str:
        return f"{question.listed}\n{self.answer}"


def recognises(path: Path) -> bool:
    files = _files(path)
    if not files:
        return False
    with files[0].open(encoding="utf-8", errors="replace") as file:
        head = file.read(4096)
    return '"keywords"' in head and '"example"' in head


def read(path: Path, shots: int) -> list[Subject]:
    if shots:
        raise UserError(
            f"{printable(path)}: GAOKAO-Bench has no dev split to take shots from; give --shots 0."
        )
    subjects = []
    for file in _files(path):
        subject = Subject(re.sub(r"^\d{4}(-\d{4})?_", "", file.stem))
        for number, record in enumerate(json_list(file), start=1):
            _add(subject, record, f"{printable(file)}, question {number}")
        subjects.append(subject)
    return subjects


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() and path.suffix == ".json" else sorted(path.rglob("*.json"))


def _add(subject: Subject, record: Any, place: str) -> None:
    if not isinstance(record, dict) or not isinstance(record.get("question"), str):
        raise UserError(f"{place}: there is no text in the field 'question'.")
    given = next((record[name] for name in ANSWERS if name in record), None)
    letters = [given] if isinstance(given, str) else given
    if not letters:
        raise UserError(f"{place}: there is no answer.")
    if not isinstance(letters, list) or not all(
        isinstance(one, str) and one.strip() and set(one.strip()) <= set("ABCDEFG") for one in letters
    ):
        subject.pass_over("with a free answer", place)
        return
    if len(letters) > 1 or len(letters[0].strip()) > 1:
        subject.pass_over("with several answers", place)
        return
    text = record["question"].strip()
    parts = _divide(text)
    if parts is None:
        subject.pass_over("whose options cannot be told apart", place)
        return
    stem, options = parts
    letter = letters[0].strip()
    if letter not in LETTERS[: len(options)]:
        raise UserError(f"{place}: the answer {letter!r} is none of {', '.join(LETTERS[: len(options)])}.")
    subject.questions.append(Question(stem, options, LETTERS.index(letter), place, listed=text))


def _divide(text: str) -> tuple[str, tuple[str, ...]] | None:
    """(stem, options) of a question in print; None where the marks A, B, C, ... do not follow one another."""
    marks = list(MARK.finditer(text))
    starts = [i for i, mark in enumerate(marks) if mark[1] == "A"]
    if not starts:
        return None
    marks = marks[starts[-1] :]
    if len(marks) < 2 or "".join(mark[1] for mark in marks) != LETTERS[: len(marks)]:
        return None
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    options = tuple(text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True))
    return (text[: marks[0].start()].strip(), options) if all(options) else None


STYLE: Style = Gaokao()
LAYOUT = Layout(recognises, read, lambda subject: STYLE, rank=5)
