"""What a method is to everything else, and what it may use."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from llmforge.options import Options

if TYPE_CHECKING:
    from llmforge.align.options import PreferenceOptions
    from llmforge.align.rows import Rows

# The rewards (n,) of the completions (their ids) of as many prompts (ids), and of the texts of the completions.
Reward = Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]], Sequence[str]], Sequence[float]]


class Method(ABC):
    """A file of this package sets `METHOD` to an object of a subclass. The file imports torch and TRL only inside
    functions.

    `text` is its line of help. `rows` is what it reads: "pairs", or "prompts", whose completions it samples and rewards;
    the options of sampling and rewards are refused without. `scores`: the trained model has a head of one number instead
    of the vocabulary. `beta` and `learning_rate` are the defaults of these options; `beta` is refused where it is None.
    `resumable`: a killed run continues from its last checkpoint. `options` is a frozen dataclass `...Options`, whose options
    become options of train-preferences; begin their names with that of the method.
    """

    text: ClassVar[str]
    rows: ClassVar[Literal["pairs", "prompts"]]
    learning_rate: ClassVar[float]
    beta: ClassVar[float | None] = None
    scores: ClassVar[bool] = False
    resumable: ClassVar[bool] = True
    options: ClassVar[type[Options] | None] = None

    def check(self) -> None:
        """Raises `UserError` where the installed TRL lacks what the method needs."""
        import trl  # noqa: F401

    @abstractmethod
    def trainer(self, context: "Context") -> Any:
        """A Trainer of transformers, ready for `train()`."""

    def trained(self, trainer: Any) -> Any:
        """The model that `trainer` has trained."""
        return trainer.accelerator.unwrap_model(trainer.model)

    def measure(self, trainer: Any, context: "Context") -> dict[str, float]:
        """Figures of the trained model on `context.heldout`, exact means over its rows."""
        return {}


def pair_figures(margins: Any) -> dict[str, float]:
    """Of the `margins` (rows,) of chosen over rejected answers: the mean `loss` -log sigmoid(margin); `accuracy`, the fraction
    above 0, those of 0 counting half; and the mean `margin`.
    """
    import numpy as np

    return {
        "loss": float(np.logaddexp(0, -margins).mean()),
        "accuracy": float(((margins > 0) + 0.5 * (margins == 0)).mean()),
        "margin": float(margins.mean()),
    }


@dataclass(frozen=True)
class Context:
    """What a method may use.

    `model` is the loaded model in float32, `origin` its directory, `tokenizer` transformers' object for it, whose eos token
    ends an answer. `arguments` are those of TrainingArguments that all methods share. `idle_ids` are rows of the model that
    belong to no token. `rewards` score completions; their sum counts. `work` is a directory for files that a resumed run
    needs again.
    """

    options: "PreferenceOptions"
    model: Any
    origin: Path
    tokenizer: Any
    rows: "Rows"
    heldout: "Rows | None"
    arguments: dict[str, Any]
    callbacks: list[Any]
    idle_ids: list[int]
    rewards: list[Reward]
    work: Path

    @property
    def beta(self) -> float:
        beta = self.options.resolved_beta
        assert beta is not None
        return beta
