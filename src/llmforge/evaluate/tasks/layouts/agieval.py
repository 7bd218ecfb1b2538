"""AGIEval as its authors distribute it: `v1_1/TASK.jsonl` with passage, question, options and label; the shots of all tasks
are in `few_shot_prompts.csv` beside it or one folder above.

Questions with several answers (gaokao-physics and jec-qa of version 1.0) or none are passed over, and so are the tasks
whose answers are free text (math, gaokao-mathcloze). The prompt is ColossalEval's. Letters are scored, and generated.
"""

import ast
from pathlib import Path
from typing import Any

from llmforge.corpus.sources import printable
from llmforge.errors import UserError
from llmforge.evaluate.tasks.layout import Chinese, Layout, Style, is_chinese, take_shots
from llmforge.evaluate.tasks.question import LETTERS, Question, Subject, answer_index, unlettered
from llmforge.evaluate.tasks.records import csv_rows, fields_of, records

SHOTS = "few_shot_prompts.csv"
# Task without a column of its own: the one whose shots it has, without their passages.
BORROWED = {"sat-en-without-passage": "sat-en"}


class English(Style):
    def header(self, subject: str) -> str:
        return "Here are the answers for the problems in the exam.\n\n"

    def listed(self, question: Question) -> str:
        return f"{self._passage(question)}Question: {question.stem} Choose from the following options: {_row(question)}\nAnswer:"

    def _passage(self, question: Question) -> str:
        return f"{question.passage}\n\n" if question.passage else ""


class ChineseExam(Chinese):
    def header(self, subject: str) -> str:
        return "以下是考试中各个问题的答案。\n\n"

    def listed(self, question: Question) -> str:
        passage = f"{question.passage}\n\n" if question.passage else ""
        return f"{passage}问题：{question.stem} 从以下选项中选择：{_row(question)}\n答案："


def _row(question: Question) -> str:
    return " ".join(f"({a}){text}" for a, text in zip(question.letters, question.options, strict=True))


def recognises(path: Path) -> bool:
    files = _files(path)
    return bool(files) and {"passage", "options", "label"} <= set(fields_of(files[0]))


def read(path: Path, shots: int) -> list[Subject]:
    subjects = []
    for file in _files(path):
        subject = Subject(file.stem)
        for place, record in records(file):
            question = _question(record, place, subject)
            if question is not None:
                subject.questions.append(question)
        if shots:
            take_shots(subject, _shots(file, subject.name), shots)
        subjects.append(subject)
    return subjects


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() and path.suffix == ".jsonl" else sorted(path.glob("*.jsonl"))


def _question(record: dict[Any, Any], place: str, subject: Subject) -> Question | None:
    """The question of a line; None where it is passed over, which `subject` counts."""
    stem, given, raw = record.get("question"), record.get("options"), record.get("label")
    if not isinstance(stem, str):
        raise UserError(f"{place}: there is no text in the field 'question'.")
    if not given:
        subject.pass_over("with a free answer", place)
        return None
    if not isinstance(given, list) or not all(isinstance(option, str) for option in given):
        raise UserError(f"{place}: the options are no list of texts.")
    if len(given) == 1 and "\t" in given[0]:
        given = given[0].split("\t")
    label = [part for part in raw if str(part).strip()] if isinstance(raw, list) else raw
    if isinstance(label, str) and len(label.split()) == 1:
        label = label.strip()
        if len(label) > 1 and set(label) <= set(LETTERS):
            label = list(label)
    if not label:
        subject.pass_over("without an answer", place)
        return None
    if isinstance(label, list) and len(label) > 1:
        subject.pass_over("with several answers", place)
        return None
    if not 2 <= len(given) <= len(LETTERS):
        raise UserError(f"{place}: {len(given)} options; a question has from 2 to {len(LETTERS)}.")
    options = tuple(unlettered(option, i) for i, option in enumerate(given))
    answer = answer_index(label, options, LETTERS, by_index=False)
    if answer is None:
        raise UserError(f"{place}: the answer {label!r} is none of {', '.join(LETTERS[: len(options)])}.")
    passage = record.get("passage")
    return Question(stem.strip(), options, answer, place, passage.strip() if isinstance(passage, str) else "")


def _shots(file: Path, task: str) -> list[Question]:
    """The shots of `task`: cells with the questions as Python literals, in every other row after the header."""
    found = next(
        (folder / SHOTS for folder in (file.parent, file.parent.parent) if (folder / SHOTS).is_file()), None
    )
    if found is None:
        return []
    rows = list(csv_rows(found))
    header = rows[0][1] if rows else []
    column = BORROWED.get(task, task)
    if column not in header:
        return []
    subject, questions = Subject(task), []
    for place, row in rows[1::2]:
        cell = row[header.index(column)] if len(row) == len(header) else ""
        if not cell.strip():
            continue
        try:
            record = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise UserError(f"{place}: the shot of {column} is no Python literal of a question.") from None
        if not isinstance(record, dict):
            raise UserError(f"{printable(place)}: the shot of {column} is no question.")
        if task in BORROWED:
            record = {**record, "passage": None}
        question = _question(record, place, subject)
        if question is not None:
            questions.append(question)
    return questions


ENGLISH, CHINESE = English(), ChineseExam()


def style(subject: Subject) -> Style:
    return CHINESE if is_chinese(" ".join(q.stem for q in subject.questions[:5])) else ENGLISH


LAYOUT = Layout(recognises, read, style, scoring=("letter", "exact"), rank=4)
