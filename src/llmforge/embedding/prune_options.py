# ruff: noqa: RUF009 - `option` makes dataclass fields
"""The options of prune-vocabulary."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.corpus.options import ReadOptions
from llmforge.errors import UsageError
from llmforge.options import OVERWRITE, TEXTS_HELP, TRUST_REMOTE_CODE, Options, group, option
from llmforge.tokenizer.options import SCHEME


@dataclass(frozen=True)
class PruneOptions(Options):
    """Either `tokenizer` or `model`, and either `num_tokens` or `min_count`."""

    data: list[str] = option(f"Texts in which the uses of tokens are counted: {TEXTS_HELP}.", decides=False)
    output: Path = option(
        "Directory to write: the tokenizer, and the model with --model.", writes="source", decides=False
    )
    model: Path | None = option(
        "Model directory to prune with its tokenizer.", None, reads="source", decides=False
    )
    tokenizer: Path | None = option(
        "Instead of --model: tokenizer directory to prune alone.", None, decides=False
    )
    keep_data: list[str] = option(
        "Texts whose tokens must stay the same, which is checked on every document.", [], decides=False
    )
    num_tokens: int | None = option("Number of tokens to remove, the least used first.", None, least=1)
    min_count: int | None = option(
        "Instead of --num-tokens: remove every token that is used fewer times than this.", None, least=1
    )
    verify: bool = option(
        "Also compare the logits of --model before and after; both are loaded by transformers.",
        False,
        decides=False,
    )
    tokenizer_scheme: str | None = option(SCHEME, None)
    reading: ReadOptions = group(ReadOptions, argument="reading")
    trust_remote_code: bool = option(TRUST_REMOTE_CODE, False, decides=False)
    overwrite: bool = option(OVERWRITE, False, decides=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.model is None) == (self.tokenizer is None):
            raise UsageError("give either --model or --tokenizer.")
        if (self.num_tokens is None) == (self.min_count is None):
            raise UsageError("give either --num-tokens or --min-count.")
        if self.verify and self.model is None:
            raise UsageError("--verify compares logits of models: give --model instead of --tokenizer.")
        if self.tokenizer_scheme and self.model:
            raise UsageError("--tokenizer-scheme is for --tokenizer; leave it out with --model.")

    @property
    def directory(self) -> Path:
        """Where the tokenizer lies."""
        found = self.model or self.tokenizer
        assert found is not None
        return found

    def arguments(self) -> dict[str, Any]:
        """What decides the output, as arguments of a manifest; the last of its inputs are those of `keep_data`."""
        return {**super().arguments(), "keep_data": len(self.keep_data)}
