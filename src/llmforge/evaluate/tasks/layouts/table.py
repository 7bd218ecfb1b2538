"""Tables of one's own: `question`, A, B, C, D (2 to 26 of them, or a list `choices`) and `answer`, in CSV, JSONL, JSON or
Parquet. A field `subject` divides a file; the shots come from the file or folder of the dev split.
"""

from collections.abc import Sequence
from pathlib import Path

from llmforge.corpus.sources import printable
from llmforge.errors import UserError
from llmforge.evaluate.tasks.layout import Layout, by_script, take_shots
from llmforge.evaluate.tasks.question import Question, Subject, from_record, letters_of
from llmforge.evaluate.tasks.records import SUFFIXES, records
from llmforge.evaluate.tasks.splits import MEASURED, choose, find


def read_file(path: Path) -> list[tuple[str, Question]]:
    """(subject, question) of every record; the subject is "" where the record names none."""
    found = []
    declared: str | None = None
    for place, record in records(path):
        fields = {str(name).strip().lower(): value for name, value in record.items() if name is not None}
        if declared is None:
            declared = letters_of(fields, place)
        question = from_record(fields, place, declared or None)
        found.append((str(fields.get("subject") or ""), question))
    if not found:
        raise UserError(f"{printable(path)}: there is no question in it.")
    return found


def read(path: Path, shots: int, measured: Sequence[str] = MEASURED) -> list[Subject]:
    splits = find(path, SUFFIXES)
    if not splits:
        raise UserError(f"{printable(path)} has no file of questions ({', '.join(SUFFIXES)}).")
    subjects: dict[str, Subject] = {}
    for name, parts in splits.items():
        tested, shown, _ = choose(parts, measured)
        examples: dict[str, list[Question]] = {}
        for file in shown if shots else []:
            for own, question in read_file(file):
                examples.setdefault(own or name, []).append(question)
        here: dict[str, Subject] = {}
        for file in tested:
            for own, question in read_file(file):
                here.setdefault(own or name, Subject(own or name)).questions.append(question)
        for subject in here.values():
            take_shots(subject, examples.get(subject.name, []), shots)
            kept = subjects.setdefault(subject.name, subject)
            if kept is not subject:
                kept.questions += subject.questions
                kept.shots = (kept.shots + subject.shots)[:shots]
    return list(subjects.values())


LAYOUT = Layout(lambda path: True, read, by_script, rank=9)
