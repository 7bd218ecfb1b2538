"""The options for learning rates by group. Imports no torch."""

from dataclasses import dataclass
from typing import Any

from llmforge.backends.common import optimizers
from llmforge.backends.common.rates import Rates
from llmforge.backends.common.trainable import parse
from llmforge.errors import UsageError
from llmforge.options import Options, option, options_of

PANEL = "Optimizer and schedule"


@dataclass(frozen=True)
class RateOptions(Options):
    """Factors of `--learning-rate`; None where none is given."""

    embedding_lr: float | None = option(
        "Factor of the learning rate for embeddings and head (default: 1).", None, panel=PANEL, least=0
    )
    new_embedding_lr: float | None = option(
        "Factor of the learning rate for the rows of new tokens in embeddings and head (default: --embedding-lr).",
        None,
        panel=PANEL,
        least=0,
    )
    layer_lr_decay: float | None = option(
        "Layer-wise decay: the factor between the learning rates of a layer and of the layer above it (default: 1).",
        None,
        panel=PANEL,
        least=0.01,
        most=1,
    )

    def check(self, trainable: str, optimizer: str) -> None:
        """Raises `UsageError` for a learning rate of what `--trainable` does not train, or that the optimizer ignores."""
        given = {one.name: one.flag for one in options_of(type(self)) if getattr(self, one.name) is not None}
        if given and not optimizers.find(optimizer).by_group:
            raise UsageError(
                f"{next(iter(given.values()))} contradicts --optimizer {optimizer}, which has one learning rate; use "
                "--optimizer adamw."
            )
        wanted = parse(trainable)
        trained = {
            "layers": wanted.inside_layers or wanted.lora,
            "embeddings": wanted.everything or wanted.embeddings,
        }
        for name, flag in given.items():
            what = "layers" if name == "layer_lr_decay" else "embeddings"
            if not trained[what]:
                raise UsageError(f"{flag} contradicts --trainable {trainable}, which trains no {what}.")
        if {"embedding_lr", "new_embedding_lr"} <= given.keys() and wanted.new_rows_only:
            raise UsageError(
                f"--embedding-lr contradicts --trainable {trainable}, which trains rows of new tokens alone; give "
                "--new-embedding-lr."
            )

    def factors(self) -> Rates:
        embeddings = 1.0 if self.embedding_lr is None else self.embedding_lr
        new = embeddings if self.new_embedding_lr is None else self.new_embedding_lr
        return Rates(embeddings, new, 1.0 if self.layer_lr_decay is None else self.layer_lr_decay)

    def arguments(self) -> dict[str, Any]:
        """Those that are given, so that outputs of versions without them stay recognized."""
        return {name: value for name, value in super().arguments().items() if value is not None}
