"""The accuracy of one model on one task, by subject and in the mean, with standard errors."""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmforge.errors import UserError
from llmforge.evaluate.generation import continue_ids, text_after
from llmforge.evaluate.models import Loaded
from llmforge.evaluate.options import SamplingOptions
from llmforge.evaluate.tasks.layout import Style, prompt
from llmforge.evaluate.tasks.likelihood import Row, Scorer, to_rows
from llmforge.evaluate.tasks.loading import Task
from llmforge.evaluate.tasks.question import Question, Subject
from llmforge.weights.architecture import positions

GENERATED_TOKENS = 8
Answers = dict[str, list[int]]  # for each question the index of the option chosen, -1 for none


def measure_task(loaded: Loaded, task: Task, scorer: Scorer, advance: Callable[..., None]) -> dict[str, Any]:
    """`subjects[name]` has `questions` and for each scoring `accuracy` and `stderr` (None of one question), both between
    0 and 1; `mean` is that of the subjects, each with the same weight, `all` that of the questions.
    """
    subjects: dict[str, dict[str, Any]] = {}
    for subject, chosen in zip(task.subjects, choose(loaded, task, scorer, advance), strict=True):
        subjects[subject.name] = {"questions": len(subject.questions)}
        for scoring, answers in chosen.items():
            right = [given == q.answer for given, q in zip(answers, subject.questions, strict=True)]
            subjects[subject.name][scoring] = accuracy(sum(right), len(right))
    return {
        "layout": task.kind,
        "shots": len(task.subjects[0].shots),
        "subjects": subjects,
        "mean": {scoring: _mean([one[scoring] for one in subjects.values()]) for scoring in task.scoring},
        "all": {
            "questions": sum(one["questions"] for one in subjects.values()),
            **{scoring: _together(subjects.values(), scoring) for scoring in task.scoring},
        },
        "passed_over": {
            reason: sum(subject.passed_over.get(reason, (0, ""))[0] for subject in task.subjects)
            for reason in dict.fromkeys(key for subject in task.subjects for key in subject.passed_over)
        },
    }


def choose(loaded: Loaded, task: Task, scorer: Scorer, advance: Callable[..., None]) -> list[Answers]:
    """What the model chooses of each question, by subject, by each scoring of the task."""
    found: list[Answers] = [{} for _ in task.subjects]
    styles = [task.layout.style(subject) for subject in task.subjects]
    for listed, wanted in ((True, {"letter"}), (False, {"answer", "bytes"})):
        if not wanted & set(task.scoring):
            continue
        groups = [
            to_questions(loaded, style, subject, listed)
            for style, subject in zip(styles, task.subjects, strict=True)
        ]
        for subject, answers, scores in zip(task.subjects, found, scorer.judge(groups, advance), strict=True):
            answers |= best_options(subject.questions, [one[0] for one in scores], listed)
    if "exact" in task.scoring:
        for style, subject, answers in zip(styles, task.subjects, found, strict=True):
            answers["exact"] = _generated(loaded, style, subject, scorer.batch_tokens, advance)
    return [{scoring: answers[scoring] for scoring in task.scoring} for answers in found]


def best_options(
    questions: Sequence[Question], scores: Sequence[npt.NDArray[np.float64]], listed: bool
) -> Answers:
    """What is chosen of each question from the log-likelihoods of its options: by `letter` where they are `listed` in the
    prompt, else by `answer` and `bytes`.
    """
    best = [int(one.argmax()) for one in scores]
    if listed:
        return {"letter": best}
    sizes = [[len(option.encode()) for option in question.options] for question in questions]
    by_bytes = [int((one / size).argmax()) for one, size in zip(scores, sizes, strict=True)]
    return {"answer": best, "bytes": by_bytes}


def prompts(style: Style, subject: Subject, listed: bool) -> list[tuple[str, list[str]]]:
    """(prompt, what may follow it) of each question: letters where the options are `listed` in the prompt, else their
    texts.
    """
    return [
        (
            prompt(style, subject, question, listed),
            [style.space + option for option in (question.letters if listed else question.options)],
        )
        for question in subject.questions
    ]


def to_questions(loaded: Loaded, style: Style, subject: Subject, listed: bool) -> list[Row]:
    """The rows of a subject; `UserError` where one is longer than the model."""
    rows = to_rows(loaded.tokenizer, prompts(style, subject, listed))
    limit = positions(loaded.model.config)
    for question, row in zip(subject.questions, rows, strict=True):
        _check_length(row.longest, limit, question, subject, loaded)
    return rows


def _check_length(length: int, limit: int, question: Question, subject: Subject, loaded: Loaded) -> None:
    if limit and length > limit:
        shots = f" with its {len(subject.shots)} shots" if subject.shots else ""
        remedy = "give fewer --shots" if subject.shots else "take a model with a longer context"
        raise UserError(
            f"{question.place}: the prompt{shots} has {length:,} tokens, more than the {limit:,} positions of "
            f"{loaded.tokenizer.directory.name}; {remedy}, or remove the question."
        )


def _generated(
    loaded: Loaded, style: Style, subject: Subject, batch_tokens: int, advance: Callable[..., None]
) -> list[int]:
    """The option whose letter the most likely continuation begins with, -1 where it begins otherwise."""
    texts = [prompt(style, subject, question, listed=True) for question in subject.questions]
    flat, offsets = loaded.tokenizer.encode(texts)
    ids = [[*loaded.tokenizer.prefix_ids, *flat[a:b].tolist()] for a, b in itertools.pairwise(offsets)]
    found = [-1] * len(ids)
    sampling = SamplingOptions(max_new_tokens=GENERATED_TOKENS)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
    while order:
        count = max(1, batch_tokens // len(ids[order[0]]))
        batch, order = order[:count], order[count:]
        for i, new in zip(batch, continue_ids(loaded, [ids[i] for i in batch], sampling), strict=True):
            found[i] = leading_letter(text_after(loaded, ids[i], new), subject.questions[i].letters)
        advance(len(batch))
    return found


def leading_letter(text: str, letters: str) -> int:
    """The index of the letter that `text` begins with, brackets and spaces before it aside; -1 where it is a word."""
    match = re.match(rf"[\s(（\[【「*]*([{letters}])(?![A-Za-z0-9'’])", text)
    return letters.index(match[1]) if match else -1


def accuracy(right: int, count: int) -> dict[str, float | None]:
    """Accuracy, and the standard error of a mean of zeros and ones: sqrt(p (1 - p) / (n - 1))."""
    share = right / count
    return {
        "accuracy": share,
        "stderr": math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else None,
    }


def _mean(parts: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """The mean over subjects; their errors are independent, so their squares add up."""
    errors = [part["stderr"] for part in parts]
    known = [error for error in errors if error is not None]
    return {
        "accuracy": sum(part["accuracy"] or 0 for part in parts) / len(parts),
        "stderr": math.sqrt(sum(error**2 for error in known)) / len(parts)
        if len(known) == len(parts)
        else None,
    }


def _together(subjects: Any, scoring: str) -> dict[str, float | None]:
    parts = list(subjects)
    right = sum(round(part[scoring]["accuracy"] * part["questions"]) for part in parts)
    return accuracy(right, sum(part["questions"] for part in parts))
