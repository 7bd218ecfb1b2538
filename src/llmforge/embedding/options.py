# ruff: noqa: RUF009 - `option` makes dataclass fields
"""The options of init-model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from llmforge.corpus.options import ReadOptions
from llmforge.embedding.initializers import described, initializers, names, option_groups
from llmforge.embedding.initializers.base import Initializer
from llmforge.errors import UsageError
from llmforge.options import (
    OVERWRITE,
    SEED,
    TEXTS_HELP,
    TRUST_REMOTE_CODE,
    Options,
    group,
    option,
    options_of,
    value_of,
)

T = TypeVar("T", bound=Options)
SAME = "same"
InitializerOptions = option_groups()
READ_DATA = names(lambda one: one.reads_data)
READ_DONOR = names(lambda one: one.reads_donor)
# Versions before recorded it whatever --init was.
ALWAYS_RECORDED = frozenset({"donor_terms"})


@dataclass(frozen=True)
class ResizeOptions(Options):
    """How new rows are made.

    The rows are padded to a multiple of `pad_to_multiple_of * tp`, the tensor-parallel size. `norm_correction` scales every
    new row to the median norm of the old ones. `replace_nan_rows` makes old rows that hold NaN or infinity the mean of the others;
    without it they are refused. `methods` has the options of each initialization.
    """

    init: str = option(
        f"Initialization of new rows. {described(lambda one: 'embedding' in one.makes)}.",
        "subtoken-mean",
        choices=names(lambda one: "embedding" in one.makes),
    )
    head_init: str = option(
        "Initialization of new rows of an untied head: same (as --init), or another. "
        f"{described(lambda one: 'head' in one.makes and 'embedding' not in one.makes)}.",
        SAME,
        choices=(SAME, *names(lambda one: "head" in one.makes)),
    )
    pad_to_multiple_of: int = option("Pad the number of rows to a multiple of this times --tp.", 64, least=1)
    tp: int = option("Tensor-parallel size that the model will be trained with.", 1, least=1)
    untie: bool = option(
        "Give a tied model a head of its own: old rows are those of the embedding, new ones by --head-init.",
        False,
    )
    norm_correction: bool = option(
        "Scale new rows to the median norm of the old ones. Harmful for tied models (docs/model.md).", False
    )
    methods: Any = group(InitializerOptions)
    seed: int = option(SEED, 42)
    replace_nan_rows: bool = option(
        "Replace old rows with NaN or infinity by the mean of the others; without this they are refused.",
        False,
        argument="mend_rows",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, options in self._of_methods().items():
            if name not in self.chosen():
                for one in options_of(type(options)):
                    if value_of(options, one) != one.default:
                        raise UsageError(f"{one.flag} is for --init {name}; give both or neither.")

    def name_for(self, role: str) -> str:
        """The name of the initialization that makes `role`."""
        return self.init if role == "embedding" or self.head_init == SAME else self.head_init

    def chosen(self) -> dict[str, Initializer]:
        """The initializations of --init and --head-init by name."""
        return {name: initializers()[name] for name in (self.init, self.name_for("head"))}

    def of(self, kind: type[T]) -> T:
        """The options that one initialization has of its own, `kind` being their class."""
        (found,) = (options for options in self._of_methods().values() if isinstance(options, kind))
        return found

    def arguments(self) -> dict[str, Any]:
        """What decides the result: of the options of initializations those of the chosen ones, and `untie` where it is set,
        so that what versions without it wrote is recognized.
        """
        idle = {
            one.argument
            for name, options in self._of_methods().items()
            if name not in self.chosen()
            for one in options_of(type(options))
        } - ALWAYS_RECORDED
        if not self.untie:
            idle.add("untie")
        return {name: value for name, value in super().arguments().items() if name not in idle}

    def check_inputs(self, data: Sequence[object], donor: Path | None) -> None:
        """Raises `UsageError` unless exactly the inputs that the chosen initializations learn from are given."""
        for flag, given, readers, what in (
            ("--data", bool(data), READ_DATA, "are the texts"),
            ("--donor", donor is not None, READ_DONOR, "is the model"),
        ):
            if given != any(name in readers for name in self.chosen()):
                who = " and ".join(f"--init {name}" for name in readers)
                learn = "learns" if len(readers) == 1 else "learn"
                raise UsageError(f"{flag} {what} that {who} {learn} from; give both or neither.")

    def _of_methods(self) -> dict[str, Options]:
        return {name.replace("_", "-"): options for name, options in vars(self.methods).items()}


@dataclass(frozen=True)
class InitModelOptions(Options):
    """`verify_data` are `[LABEL=]PATH`."""

    model: Path = option("Model to resize, a Hugging Face directory with its tokenizer.", reads="source")
    tokenizer: Path = option("The extended tokenizer, from init-tokenizer.", reads="tokenizer")
    output: Path = option("Model directory to write.", writes="model")
    resize: ResizeOptions = group(ResizeOptions)
    data: list[str] = option(f"For --init {' and '.join(READ_DATA)}: texts to learn from: {TEXTS_HELP}.", [])
    donor: Path | None = option(
        f"For --init {' and '.join(READ_DONOR)}: a model directory whose tokenizer has the new tokens.",
        None,
        metavar="PATH",
    )
    verify_data: list[str] = option(
        "[LABEL=]PATH of texts on which source and resized model are compared in bits per byte, by category: "
        "at most 50 documents of each, 2,000 characters of each document.",
        [],
    )
    reading: ReadOptions = group(ReadOptions)
    trust_remote_code: bool = option(TRUST_REMOTE_CODE, False, decides=False)
    overwrite: bool = option(OVERWRITE, False, decides=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.resize.check_inputs(self.data, self.donor)
