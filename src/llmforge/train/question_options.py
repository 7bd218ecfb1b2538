# ruff: noqa: RUF009 - `option` makes dataclass fields
"""The options of the questions that are asked during a training. Imports no torch."""

from dataclasses import dataclass

from llmforge.errors import UsageError
from llmforge.options import Options, option

PANEL = "Evaluation and logging"


@dataclass(frozen=True)
class QuestionOptions(Options):
    """Tasks as of `evaluate --tasks`."""

    eval_tasks: list[str] = option(
        "Multiple-choice tasks to answer at the same steps: [NAME=]PATH, as of evaluate --tasks.",
        [],
        panel=PANEL,
        decides=False,
    )
    eval_shots: int = option(
        "Questions with their answers before each question of --eval-tasks.",
        0,
        panel=PANEL,
        decides=False,
        least=0,
    )
    eval_questions: int | None = option(
        "Only the first questions of each subject of --eval-tasks.",
        None,
        panel=PANEL,
        decides=False,
        least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.eval_shots or self.eval_questions) and not self.eval_tasks:
            raise UsageError("--eval-shots and --eval-questions need --eval-tasks.")
