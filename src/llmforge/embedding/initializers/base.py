"""What a way to make new rows is to everything else, and what it may use."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from llmforge.options import Options

if TYPE_CHECKING:
    from llmforge.corpus import Reader, ReadOptions
    from llmforge.embedding.options import ResizeOptions
    from llmforge.embedding.rows import Bool, Mixture, NewRows, OldRows
    from llmforge.tokenizer import Tokenizer
    from llmforge.weights.floats import Float32

# The tensors that have a row for each token. A tied model has the embedding alone.
ROLES = ("embedding", "head", "head_bias")


class Initializer(ABC):
    """A file of this package sets `INITIALIZER` to an object of a subclass. The file imports numpy and torch only inside
    functions.

    `text` is its line of help. `--init` takes it if it `makes` the embedding, `--head-init` if it makes the head; the new
    rows of a role that it does not make are the means of their sub-tokens. `reads_data`: it learns from the texts of
    --data, which are refused otherwise; `reads_donor`: from the model of --donor. `runs_model`: it loads the source model
    and computes with it. `resumable`: it keeps in `context.work` what the next run of the same command continues from
    after a kill. `options` is a frozen dataclass `...Options`, whose options become options of init-model; begin their
    names with that of the initialization. They belong to the identity of the output where it is chosen.
    """

    text: ClassVar[str]
    makes: ClassVar[Sequence[str]] = ROLES
    reads_data: ClassVar[bool] = False
    reads_donor: ClassVar[bool] = False
    runs_model: ClassVar[bool] = False
    resumable: ClassVar[bool] = False
    options: ClassVar[type[Options] | None] = None

    @abstractmethod
    def make(self, context: "InitContext", roles: Sequence[str]) -> "Mapping[str, NewRows]":
        """The new rows of each of `roles`, all of which it `makes`; called once."""


@dataclass(frozen=True)
class InitContext:
    """What an initialization may use.

    `source` and `target` are the tokenizers, `source.directory` holds the source model. `old` has what is known of the
    old rows by role, and its `tensor` their place in the files. `corpus` and `donor` are given where it reads them.
    `work` is a directory for its own files, kept after a kill if it is `resumable`, and deleted once the model is written.
    `figures` is for numbers that the manifest shall have.
    """

    options: "ResizeOptions"
    source: "Tokenizer"
    target: "Tokenizer"
    old: "dict[str, OldRows]"
    corpus: Sequence[Path]
    reading: "ReadOptions"
    donor: Path | None
    work: Path
    trust_remote_code: bool
    figures: dict[str, float] = field(default_factory=dict)

    def reader(self) -> "Reader":
        """The documents of --data."""
        from llmforge.corpus import Reader

        return Reader(self.corpus, self.reading)

    @cached_property
    def subtokens(self) -> "Mixture":
        """The mean of the old tokens that spell each new one; empty for a piece none of whose characters is known."""
        from llmforge.embedding.subtokens import subtoken_mean

        return subtoken_mean(self.source, self.target)

    def mixed(self, role: str, mixture: "Mixture") -> "NewRows":
        """The rows that `mixture` makes of the old ones; those that are empty in it are made from their sub-tokens."""
        from llmforge.embedding.rows import NewRows

        filler = mixture.filled_from(self.subtokens).filler(self.old[role])
        return NewRows(filler, by_subtokens=len(mixture.empty))

    def given(self, role: str, rows: "Float32", known: "Bool") -> "NewRows":
        """`rows` [new tokens, row length], an array or a memory map, as they are; those that are not `known`
        [new tokens] are made from their sub-tokens.
        """
        from llmforge.embedding.rows import NewRows, replaced

        others = self.subtokens.filler(self.old[role])
        return NewRows(replaced(others, rows, known), by_subtokens=len(known) - int(known.sum()))
