# ruff: noqa: RUF009 - `option` makes dataclass fields
"""The options of evaluate and generate."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmforge.corpus.options import ReadOptions
from llmforge.errors import UsageError
from llmforge.options import OVERWRITE, SEED, TEXTS_HELP, TRUST_REMOTE_CODE, Options, group, option

Dtype = Literal["float32", "bfloat16", "float16"]
COLDEST, HOTTEST = 1e-4, 1e4  # beyond them the likeliest token, or any, is taken, and further on float32 ends
DTYPE = "Data type of the weights."


@dataclass(frozen=True)
class ProtocolOptions(Options):
    """How models are measured: what decides the figures. `dtype` is that of the weights; `by_category` labels
    documents by their own `category` where a source has no label.
    """

    max_length: int = option(
        "Maximum number of tokens per input; longer documents are evaluated in windows.", 2048, least=2
    )
    max_documents: int | None = option("Maximum number of documents per label (default: all).", None, least=1)
    max_characters: int | None = option(
        "Maximum number of characters per document (default: all).", None, least=1
    )
    batch_tokens: int = option("Number of tokens per batch.", 2048, least=2)
    dtype: Dtype = option(DTYPE, "float32")
    per_document: bool = option(
        "Also give the bits and bytes of each document, in --json and --output x.json.", False
    )
    by_category: bool = False
    reading: ReadOptions = group(ReadOptions, argument="reading")

    def arguments(self) -> dict[str, Any]:
        """What decides the figures, as arguments of a manifest."""
        values = {**super().arguments(), "by_category": self.by_category}
        if not self.per_document:  # tables of versions that had no such option stay recognized
            del values["per_document"]
        return values


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """`data` are `[LABEL=]PATH`."""

    model: list[Path] = option("Model directories to compare.", reads="models")
    data: list[str] = option(f"[LABEL=]PATH of documents: {TEXTS_HELP}.")
    output: Path | None = option(
        "Write the table to this file (.json or .md); nothing is done if it is up to date.",
        None,
        writes="table",
    )
    protocol: ProtocolOptions = group(ProtocolOptions)
    trust_remote_code: bool = option(TRUST_REMOTE_CODE, False, decides=False)
    overwrite: bool = option(OVERWRITE, False, decides=False)


@dataclass(frozen=True)
class SamplingOptions(Options):
    """How tokens are chosen: the likeliest one at temperature 0, else drawn from the nucleus of mass `top_p`."""

    max_new_tokens: int = option("Maximum number of new tokens.", 64, least=1)
    temperature: float = option("Sampling temperature; 0 takes the most likely token.", 0.0, least=0)
    top_p: float = option(
        "Nucleus sampling (top-p): total probability of the tokens kept.", 1.0, least=0.01, most=1
    )
    seed: int = option(SEED, 0)
    dtype: Dtype = option(DTYPE, "float32")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature and not COLDEST <= self.temperature <= HOTTEST:
            raise UsageError(
                f"--temperature {self.temperature} must be 0, or from {COLDEST:g} to {HOTTEST:g}; 0.7 to 1 is usual."
            )


@dataclass(frozen=True)
class GenerateOptions(Options):
    """`output` is a text file."""

    model: Path = option("Model directory.", reads="model")
    prompt: str = option("The text to continue.")
    sampling: SamplingOptions = group(SamplingOptions)
    output: Path | None = option(
        "Also write the text to this file; nothing is done if it is up to date.", None, writes="text"
    )
    trust_remote_code: bool = option(TRUST_REMOTE_CODE, False, decides=False)
    overwrite: bool = option(OVERWRITE, False, decides=False)
