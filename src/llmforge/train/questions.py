"""Accuracies on multiple-choice tasks while a model is trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llmforge.backends.base import IGNORED, Engine, MicroBatch
from llmforge.errors import UserError
from llmforge.evaluate.tasks.likelihood import to_rows
from llmforge.evaluate.tasks.loading import Task, load_tasks
from llmforge.evaluate.tasks.measure import accuracy, best_options, prompts
from llmforge.tokenizer import Tokenizer
from llmforge.train.options import TrainOptions

MOST_DOCUMENTS = 256  # in a micro-batch: each has a group of losses of its own


@dataclass(frozen=True)
class Choice:
    """A prompt with one of its options, (n,) ids; those from position `first` on are scored."""

    ids: np.ndarray
    first: int


class Questions:
    """Tasks of `--eval-tasks`. Every prompt with each of its options is a document of a packed row, as in training, so that
    every engine measures them, whatever its weights are divided among.

    Raises `UserError` with file and line, also where a prompt is longer than the rows of `length` tokens.
    """

    def __init__(
        self, config: TrainOptions, tokenizer: Tokenizer, length: int, documents_per_row: int
    ) -> None:
        asked = config.questions
        self.tasks = load_tasks(asked.eval_tasks, asked.eval_shots, (), asked.eval_questions)
        self.micro, self.length = config.micro_batch_size, length
        self.kinds: list[tuple[Task, bool]] = []  # a task, and whether its options stand in the prompt
        for task in self.tasks:
            listed = {scoring in ("letter", "exact") for scoring in task.scoring}
            self.kinds += [(task, kind) for kind in sorted(listed, reverse=True)]
        self.choices: list[Choice] = []
        for task, kind in self.kinds:
            self._add(task, kind, tokenizer)
        alone = config.cross_document_attention or documents_per_row == 1
        self.batches = self._packed(1 if alone else documents_per_row)
        self.documents = max(sum(map(len, rows)) for rows in self.batches)  # of one micro-batch

    def groups(self, ranks: int) -> int:
        """How many groups of losses an engine of so many ranks needs."""
        return self.documents * ranks

    def measure(self, engine: Engine, stop: Callable[[], bool]) -> dict[str, dict[str, float]] | None:
        """Collective: `task_accuracy` and `task_stderr`, between 0 and 1, by task; None where `stop`, which is asked after
        each batch, says so.
        """
        ranks, scores = engine.world.data_size, np.zeros(len(self.choices))
        for start in range(0, len(self.batches), ranks):
            together = self.batches[start : start + ranks]
            mine = together[engine.world.data_rank] if engine.world.data_rank < len(together) else []
            sums = engine.evaluate([self._micro_batch(mine, engine.world.data_rank * self.documents)])
            for rank, rows in enumerate(together):
                numbers = [number for row in rows for number in row]
                first = rank * self.documents
                scores[numbers] = -sums.loss[first : first + len(numbers)].numpy()
            if stop():
                return None
        return self._accuracies(scores)

    def _add(self, task: Task, listed: bool, tokenizer: Tokenizer) -> None:
        for subject in task.subjects:
            rows = to_rows(tokenizer, prompts(task.layout.style(subject), subject, listed))
            for question, row in zip(subject.questions, rows, strict=True):
                if row.longest > self.length:
                    raise UserError(
                        f"{question.place}: the prompt has {row.longest:,} tokens, more than the {self.length:,} of a row of "
                        "--data; give fewer --eval-shots, or remove the question."
                    )
                self.choices += [
                    Choice(np.concatenate((row.context, option)).astype(np.int64), len(row.context))
                    for option in row.options
                ]

    def _packed(self, most: int) -> list[list[list[int]]]:
        """Micro-batches of rows of numbers of choices, the longest first, at most `most` in a row."""
        rows: list[list[int]] = []
        room = 0
        for number in sorted(range(len(self.choices)), key=lambda n: -len(self.choices[n].ids)):
            size = len(self.choices[number].ids)
            # One token more is free, so that padding is a document of its own.
            if not rows or size >= room or len(rows[-1]) == most:
                rows.append([])
                room = self.length
            rows[-1].append(number)
            room -= size
        batches: list[list[list[int]]] = []
        for row in rows:
            last = batches[-1] if batches else []
            if not last or len(last) == self.micro or sum(map(len, last)) + len(row) > MOST_DOCUMENTS:
                batches.append([])
            batches[-1].append(row)
        return batches

    def _micro_batch(self, rows: Sequence[Sequence[int]], first: int) -> MicroBatch:
        """`rows` of choices; the losses of the n-th choice are of group `first + n`."""
        shape = (self.micro, self.length)
        ids, groups = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        targets = np.full(shape, IGNORED, dtype=np.int64)
        positions = np.tile(np.arange(self.length, dtype=np.int64), (self.micro, 1))
        lengths: list[tuple[int, ...]] = [(self.length,)] * self.micro
        padded, group = [False] * self.micro, first
        for i, row in enumerate(rows):
            at, sizes = 0, []
            for number in row:
                choice = self.choices[number]
                end = at + len(choice.ids)
                ids[i, at:end] = choice.ids
                positions[i, at:end] = np.arange(end - at)
                targets[i, at + choice.first - 1 : end - 1] = choice.ids[choice.first :]
                groups[i, at:end] = group
                sizes.append(end - at)
                at, group = end, group + 1
            positions[i, at:] -= at
            padded[i] = at < self.length
            lengths[i] = (*sizes, *((self.length - at,) if padded[i] else ()))
        as_tensor = torch.from_numpy
        return MicroBatch(
            as_tensor(ids),
            as_tensor(targets),
            as_tensor(positions),
            as_tensor(groups),
            tuple(lengths),
            tuple(padded),
            as_tensor(np.flatnonzero(targets != IGNORED)),
        )

    def _accuracies(self, scores: np.ndarray) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {"task_accuracy": {}, "task_stderr": {}}
        at = 0
        for task, listed in self.kinds:
            questions = [question for subject in task.subjects for question in subject.questions]
            likely = []
            for question in questions:
                likely.append(scores[at : at + len(question.options)])
                at += len(question.options)
            for scoring, chosen in best_options(questions, likely, listed).items():
                if scoring not in task.scoring:
                    continue
                right = sum(one == question.answer for one, question in zip(chosen, questions, strict=True))
                value: dict[str, Any] = accuracy(right, len(questions))
                name = task.label if len(task.scoring) == 1 else f"{task.label} {scoring}"
                found["task_accuracy"][name] = value["accuracy"]
                if value["stderr"] is not None:
                    found["task_stderr"][name] = value["stderr"]
        return found
