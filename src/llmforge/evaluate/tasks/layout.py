"""What a layout of tasks is: how its files are read, and the words in which its questions are asked."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmforge.evaluate.tasks.question import Question, Subject

_HAN, _OTHER_ASIAN = re.compile(r"[\u4e00-\u9fff]"), re.compile(r"[\u3040-\u30ff\uac00-\ud7af]")


class Style:
    """MMLU's own words, as its authors' script and lm-evaluation-harness have them.

    A prompt is `header`, each shot with its answer and two line feeds, and the question; the answer comes behind `space`.
    """

    space = " "
    answer = "Answer:"

    def header(self, subject: str) -> str:
        """What stands before the shots; `subject` as the files call it."""
        return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"

    def listed(self, question: Question) -> str:
        """The question with its options, to be answered by a letter."""
        options = "".join(
            f"{a}. {text}\n" for a, text in zip(question.letters, question.options, strict=True)
        )
        return f"{self.text(question)}\n{question.listed or options}{self.answer}"

    def opened(self, question: Question) -> str:
        """The question without its options, to be answered by the text of one."""
        return f"Question: {self.text(question)}\n{self.answer}"

    def text(self, question: Question) -> str:
        return f"{question.passage}\n\n{question.stem}" if question.passage else question.stem


class Chinese(Style):
    """CMMLU's words. The letter follows the colon without a space, as Chinese text is written."""

    space = ""
    answer = "答案："
    names: dict[str, str] = {}  # noqa: RUF012 - of subjects in Chinese; the file's own name where there is none

    def header(self, subject: str) -> str:
        return f"以下是关于{self.names.get(subject, subject)}的单项选择题，请直接给出正确答案的选项。\n\n"

    def opened(self, question: Question) -> str:
        return f"题目：{self.text(question)}\n{self.answer}"


ENGLISH, CHINESE = Style(), Chinese()


@dataclass(frozen=True)
class Layout:
    """One layout. `recognises(path)`: whether the file or directory is of it. `read(path, shots)`: its subjects, with up to
    `shots` shown questions each; raises `UserError` with file and line.

    `style(subject)` says how questions are asked; `scoring` is what is measured where nothing else is asked for. Layouts are
    tried in the order of `rank`.
    """

    recognises: Callable[[Path], bool]
    read: Callable[[Path, int], list[Subject]]
    style: Callable[[Subject], Style]
    scoring: tuple[str, ...] = ("letter",)
    rank: int = 0


def by_script(subject: Subject) -> Style:
    """Chinese words for Chinese questions, English words for all others."""
    text = " ".join(question.stem for question in subject.questions[:5])
    return CHINESE if is_chinese(text) else ENGLISH


def is_chinese(text: str) -> bool:
    """Han characters and no kana or hangul, so that Japanese and Korean are not taken for it."""
    return bool(_HAN.search(text)) and not _OTHER_ASIAN.search(text)


def prompt(style: Style, subject: Subject, question: Question, listed: bool) -> str:
    """The whole prompt of a question, up to the answer, which comes behind `style.space`."""
    ask = style.listed if listed else style.opened
    shown = "".join(
        f"{ask(shot)}{style.space}{shot.letter if listed else shot.options[shot.answer]}\n\n"
        for shot in subject.shots
    )
    return style.header(subject.name) + shown + ask(question)


def take_shots(subject: Subject, found: Sequence[Question], shots: int) -> None:
    """The first `shots` of `found` as the shots of the subject; how many there must be is checked by the caller."""
    subject.shots = list(found[:shots])
