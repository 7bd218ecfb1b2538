"""New rows distilled from the source model: its hidden states, and its probabilities, of the same text in old tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmforge.embedding.initializers.base import InitContext, Initializer
from llmforge.options import Options, option

if TYPE_CHECKING:
    from llmforge.embedding.rows import NewRows


@dataclass(frozen=True)
class DistillOptions(Options):
    """`distill_layers` None is a third; `distill_learning_rate` is in units of the root mean square of the old rows."""

    distill_tokens: int = option(
        "For --init distill: tokens of --data that each side of the rows is learned from.", 16384, least=1
    )
    distill_output_tokens: int | None = option(
        "For --init distill: tokens of --data that the output side is learned from (default: --distill-tokens).",
        None,
        least=1,
    )
    distill_minutes: float | None = option(
        "For --init distill: fewer tokens, so many that all takes about these minutes; how many is said and recorded.",
        None,
        least=0,
    )
    distill_layers: int | None = option(
        "For --init distill: layers after which hidden states are compared (default: a third of them).",
        None,
        least=1,
    )
    distill_epochs: int = option("For --init distill: how often the input side sees its tokens.", 3, least=1)
    distill_learning_rate: float = option(
        "For --init distill: learning rate of the input side, relative to the root mean square of the old rows.",
        0.15,
        least=0,
    )
    distill_sides: str = option(
        "For --init distill: what is learned: input (hidden states), output (what comes next) or both.",
        "both",
        choices=("both", "input", "output"),
    )
    distill_anchor: float = option(
        "For --init distill of a tied model: nats a token that a distance of the hidden states of 1 is worth.",
        1.0,
        least=0,
    )

    @property
    def output_tokens(self) -> int:
        return self.distill_output_tokens or self.distill_tokens

    def with_tokens(self, tokens: int) -> "DistillOptions":
        """The same with `tokens` for the input side, and as many times more or fewer for the output side."""
        output = max(1, tokens * self.output_tokens // self.distill_tokens)
        return replace(self, distill_tokens=tokens, distill_output_tokens=output)

    def arguments(self) -> dict[str, Any]:
        """As in the manifests of earlier versions where only their options are given."""
        values = super().arguments()
        later = {"distill_minutes", "distill_output_tokens"}
        return {name: value for name, value in values.items() if name not in later or value is not None}


class Distill(Initializer):
    text = "trained so that the source model, on --data, sees and predicts the token as it did its spelling"
    makes = ("embedding", "head")
    reads_data = True
    runs_model = True
    resumable = True
    options = DistillOptions

    def make(self, context: InitContext, roles: Sequence[str]) -> "Mapping[str, NewRows]":
        from llmforge.embedding.distillation.both_sides import distill

        return distill(context, roles, context.options.of(DistillOptions))


INITIALIZER = Distill()
