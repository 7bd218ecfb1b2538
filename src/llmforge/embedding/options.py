# ruff: noqa: RUF009 - `option` makes dataclass fields
"""The options of init-model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from llmforge.corpus.options import ReadOptions
from llmforge.errors import UsageError
from llmforge.options import OVERWRITE, SEED, TEXTS_HELP, TRUST_REMOTE_CODE, Options, group, option

Init = Literal["subtoken-mean", "mean", "gaussian", "align", "focus", "donor"]
HeadInit = Literal["same", "mean", "first-subtoken"]
INITS: tuple[str, ...] = get_args(Init)
HEAD_INITS: tuple[str, ...] = get_args(HeadInit)


@dataclass(frozen=True)
class Growth(Options):
    """How new rows are made.

    `init` is one of INITS, `head_init` one of HEAD_INITS. The rows are padded to a multiple of
    `pad_to_multiple_of * tp`, the tensor-parallel size. `norm_correction` scales every new row to the median norm of
    the old ones. `donor_terms` is the number of anchors that `donor` combines. `mend_rows` makes old rows that hold NaN or
    infinity the mean of the others; without it they are refused.
    """

    init: str = option(
        "How new rows are made: subtoken-mean, mean, gaussian, align or focus (with --data), donor (with --donor).",
        "subtoken-mean",
        metavar=f"[{'|'.join(INITS)}]",
    )
    head_init: str = option(
        "How new rows of an untied head are made: same (as --init), mean or first-subtoken.",
        "same",
        metavar=f"[{'|'.join(HEAD_INITS)}]",
    )
    pad_to_multiple_of: int = option("Pad the number of rows to a multiple of this times --tp.", 64, least=1)
    tp: int = option("Tensor-parallel size that the model will be trained with.", 1, least=1)
    norm_correction: bool = option(
        "Scale new rows to the median norm of old ones. Ruins tied models; measure first.", False
    )
    donor_terms: int = option("For donor: number of old tokens that make a new row.", 8, least=1)
    seed: int = option(SEED, 42)
    mend_rows: bool = option(
        "Replace old rows that hold NaN or infinity by the mean of the others; they are refused otherwise.",
        False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init not in INITS:
            raise UsageError(f"--init {self.init} is not known; choose one of {', '.join(INITS)}.")
        if self.head_init not in HEAD_INITS:
            raise UsageError(
                f"--head-init {self.head_init} is not known; choose one of {', '.join(HEAD_INITS)}."
            )

    def check_inputs(self, data: Sequence[object], donor: Path | None) -> None:
        """Raises `UsageError` unless exactly the inputs that `init` learns from are given."""
        if bool(data) != (self.init in ("align", "focus")):
            raise UsageError("--data is what --init align and --init focus learn from: give both or neither.")
        if bool(donor) != (self.init == "donor"):
            raise UsageError("--donor is the model that --init donor learns from: give both or neither.")


@dataclass(frozen=True)
class InitModelOptions(Options):
    """`verify_data` are `[LABEL=]PATH`."""

    model: Path = option("Model to resize, a Hugging Face directory with its tokenizer.", reads="source")
    tokenizer: Path = option("The larger tokenizer, from init-tokenizer.", reads="tokenizer")
    output: Path = option("Model directory to write.", writes="model")
    growth: Growth = group(Growth)
    data: list[str] = option(f"Texts that align and focus learn from: {TEXTS_HELP}.", [])
    donor: Path | None = option(
        "For donor: a model directory whose tokenizer has the new pieces.", None, metavar="PATH"
    )
    verify_data: list[str] = option(
        "[LABEL=]PATH of texts on which source and target model are compared in bits per byte, by category: "
        "at most 50 documents of each, 2,000 characters of each document.",
        [],
    )
    reading: ReadOptions = group(ReadOptions)
    trust_remote_code: bool = option(TRUST_REMOTE_CODE, False, decides=False)
    overwrite: bool = option(OVERWRITE, False, decides=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.growth.check_inputs(self.data, self.donor)
