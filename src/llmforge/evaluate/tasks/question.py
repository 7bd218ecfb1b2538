"""Multiple-choice questions, and how a record of a file becomes one."""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmforge.errors import UserError

LETTERS = string.ascii_uppercase
MOST_OPTIONS = len(LETTERS)
# "(A) text", "A. text", "A、text": letters that stand before options already.
_LETTERED = re.compile(r"^\s*[(（]?([A-Z])\s*[)）.．、:：]\s*")
_OPTIONS = ("choices", "options")
_ANSWERS = ("answer", "answerkey", "label")


@dataclass(frozen=True)
class Question:
    """`stem` with its 2 to 26 `options`; `answer` is the index of the right one. `passage` is what the stem speaks of.

    `listed`: the text in which the options stand already, where the file has no other. `place` is for messages.
    """

    stem: str
    options: tuple[str, ...]
    answer: int
    place: str
    passage: str = ""
    listed: str = ""

    @property
    def letter(self) -> str:
        return LETTERS[self.answer]

    @property
    def letters(self) -> str:
        return LETTERS[: len(self.options)]


@dataclass
class Subject:
    """The questions of one subject, and those that are shown before them with their answers, in the order of the files.

    `passed_over`: why questions of these files are not asked, with their number and the place of the first one.
    """

    name: str
    questions: list[Question] = field(default_factory=list)
    shots: list[Question] = field(default_factory=list)
    passed_over: dict[str, tuple[int, str]] = field(default_factory=dict)

    def pass_over(self, reason: str, place: str) -> None:
        count, first = self.passed_over.get(reason, (0, place))
        self.passed_over[reason] = (count + 1, first)


def from_record(record: Mapping[Any, Any], place: str, declared: str | None = None) -> Question:
    """The question of a record with `question`, its options and `answer`, whatever the case of the names.

    Options are fields A, B, C, ..., or a list (`choices` or `options`) of texts, or of `text` and `label` as ARC has
    them. The answer (`answer`, `answerKey` or `label`) is a letter, a label, an index from 0 into a list, or the text
    of an option. `declared` are the letters that every record of the file has. Raises `UserError` with the `place`.
    """
    fields = {str(name).strip().lower(): value for name, value in record.items() if name is not None}
    stem = _text(fields.get("question"), "question", place)
    listed = next((fields[name] for name in _OPTIONS if fields.get(name) is not None), None)
    labels: Sequence[str] = LETTERS
    if listed is not None:
        options, labels = _from_list(listed, place)
    else:
        letters = declared or letters_of(fields, place)
        options = [_option(fields.get(letter.lower()), letter, letters, place) for letter in letters]
        extra = [letter for letter in LETTERS[len(letters) :] if _filled(fields.get(letter.lower()))]
        if extra:
            raise UserError(
                f"{place}: an option {extra[0]}, where the questions before have {len(letters)} options."
            )
    if not 2 <= len(options) <= MOST_OPTIONS:
        raise UserError(
            f"{place}: {len(options)} options; a question has from 2 to {MOST_OPTIONS}, in fields A, B, ..., or in a list."
        )
    given = next((fields[name] for name in _ANSWERS if _filled(fields.get(name))), None)
    if given is None:
        raise UserError(f"{place}: there is no answer (a field 'answer' with a letter).")
    answer = answer_index(given, options, labels, by_index=listed is not None)
    if answer is None:
        raise UserError(
            f"{place}: the answer {str(given)!r} is none of {', '.join(labels[: len(options)])}; "
            "a question has one answer, given by its letter."
        )
    return Question(stem, tuple(options), answer, place)


def answer_index(given: Any, options: Sequence[str], labels: Sequence[str], by_index: bool) -> int | None:
    """The index of the option that `given` names, None where it names none or several."""
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if isinstance(given, int) and not isinstance(given, bool):
        return given if by_index and labels is LETTERS and 0 <= given < len(options) else None
    if not isinstance(given, str):
        return None
    word = given.strip()
    bare = word.strip("()（）.．、 ").upper()
    labels = list(labels[: len(options)])
    if word in labels or bare in labels:
        return labels.index(word if word in labels else bare)
    if by_index and word.isascii() and word.isdigit() and int(word) < len(options) and labels[0] == "A":
        return int(word)
    stripped = [option.strip() for option in options]
    return stripped.index(word) if stripped.count(word) == 1 else None


def letters_of(fields: Mapping[str, Any], place: str) -> str:
    """The option letters among the names of fields: A, B, ... without a gap; empty values count where they are named."""
    named = "".join(letter for letter in LETTERS if letter.lower() in fields)
    if named and named != LETTERS[: len(named)]:
        missing = next(letter for letter in LETTERS if letter not in named)
        raise UserError(f"{place}: there is an option {named[-1]} and no option {missing}.")
    return named


def unlettered(option: str, position: int) -> str:
    """An option without the letter before it, where that is the letter of its `position`."""
    found = _LETTERED.match(option)
    return option[found.end() :].strip() if found and found[1] == LETTERS[position] else option.strip()


def _from_list(value: Any, place: str) -> tuple[list[str], Sequence[str]]:
    labels: Sequence[str] = LETTERS
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        if isinstance(value.get("label"), list):
            labels = [str(label).strip() for label in value["label"]]
            if len(labels) != len(value["text"]):
                raise UserError(f"{place}: {len(value['text'])} options and {len(labels)} labels.")
        value = value["text"]
    if not isinstance(value, list) or not all(isinstance(option, (str, int, float)) for option in value):
        raise UserError(f"{place}: the options are no list of texts.")
    options = [unlettered(str(option), i) for i, option in enumerate(value[:MOST_OPTIONS])]
    if "" in options:
        raise UserError(f"{place}: option {LETTERS[options.index('')]} is empty.")
    return options if len(value) <= MOST_OPTIONS else [str(option) for option in value], labels


def _option(value: Any, letter: str, letters: str, place: str) -> str:
    if not _filled(value):
        raise UserError(
            f"{place}: option {letter} is empty, where {len(letters)} options ({letters[0]} to {letters[-1]}) are declared."
        )
    return str(value).strip()


def _text(value: Any, name: str, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: there is no text in the field '{name}'.")
    return value.strip()


def _filled(value: Any) -> bool:
    return value is not None and value != [] and str(value).strip() != ""
