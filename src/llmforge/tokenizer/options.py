# ruff: noqa: RUF009 - `option` makes dataclass fields
"""The options of learn-pieces, init-tokenizer and compare-tokenizers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.corpus.options import ReadOptions
from llmforge.errors import UsageError
from llmforge.options import OVERWRITE, SEED, TEXTS_HELP, Options, group, option

SCHEME = (
    "Format of a file of tiktoken ranks, where it cannot be told: llama3, glm4, qwen2, o200k_harmony, ..."
)


@dataclass(frozen=True)
class LearnPiecesOptions(Options):
    """`max_piece_length` counts characters. Either texts (`data`) or lists of words are learned from."""

    tokenizer: Path = option(
        "Tokenizer (or model) directory to continue from.", reads="source", decides=False
    )
    num_pieces: int = option("Number of tokens to learn, including missing characters.", least=1)
    output: Path = option(
        "The jsonl file to write: one token per line, in merge order.", writes="pieces", decides=False
    )
    data: list[str] = option(f"Texts: {TEXTS_HELP}.", [], decides=False)
    word_list: list[Path] = option(
        "Instead of --data: lists of words with frequencies, such as jieba's dict.txt.", [], decides=False
    )
    script: str | None = option("Learn from words of one Unicode script only, such as Han.", None)
    min_frequency: int = option("Minimum frequency of a merge.", 2, least=1)
    max_piece_length: int = option(
        "Maximum number of characters of a token.", 16, least=1, argument="max_length"
    )
    curve: bool = option(
        "Also show, by number of new tokens, the tokens per character and what a character costs --model.",
        False,
        decides=False,
    )
    model: Path | None = option(
        "For --curve: the model directory, of which only config.json is read (default: --tokenizer, if it has one).",
        None,
        decides=False,
    )
    reading: ReadOptions = group(ReadOptions, argument="reading")
    seed: int = option(SEED, 0)
    tokenizer_scheme: str | None = option(SCHEME, None)
    overwrite: bool = option(OVERWRITE, False, decides=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.data) == bool(self.word_list):
            raise UsageError("give either --data or --word-list.")
        if self.curve and self.word_list:
            raise UsageError("--curve counts tokens of texts: give --data instead of --word-list.")
        if self.model and not self.curve:
            raise UsageError("--model is for --curve: give both, or neither.")

    def arguments(self) -> dict[str, Any]:
        """What decides the pieces, as arguments of a manifest."""
        values = super().arguments()
        if self.word_list:
            del values["reading"], values["seed"]
            values["words"] = True
        return values


@dataclass(frozen=True)
class InitTokenizerOptions(Options):
    """`closure`: also add what the new pieces are merged from."""

    tokenizer: Path = option("Tokenizer (or model) directory to extend.", reads="source", decides=False)
    output: Path = option("Tokenizer directory to write.", writes="tokenizer", decides=False)
    pieces: Path | None = option(
        'New tokens: jsonl of {"piece": "..."}, .txt with one per line, a sentencepiece .model or .vocab, or a '
        "tokenizer directory.",
        None,
        reads="pieces",
        decides=False,
    )
    special_tokens: list[str] = option(
        "Special tokens to add before them, such as those of a chat template: '<|im_start|>,<|im_end|>'.", []
    )
    chat_template: Path | None = option(
        "Chat template of the new tokenizer: a Jinja file, or chatml, llama3 or ziya.", None, decides=False
    )
    closure: bool = option(
        "Also add the characters and intermediate tokens that new tokens need to be reachable.", True
    )
    verify_data: list[str] = option(
        "Texts for the automatic checks (default: the new tokens and a built-in sample).", [], decides=False
    )
    tokenizer_scheme: str | None = option(SCHEME, None)
    reading: ReadOptions = group(ReadOptions, argument="reading")
    overwrite: bool = option(OVERWRITE, False, decides=False)

    def arguments(self) -> dict[str, Any]:
        """What decides the tokenizer, as arguments of a manifest."""
        values = super().arguments()
        if not self.verify_data:
            del values["reading"]
        if not self.special_tokens:  # as in the manifests of earlier versions
            del values["special_tokens"]
        if self.chat_template:
            from llmforge.steps import fingerprint

            file = self.chat_template
            values["chat_template"] = fingerprint(file) if file.exists() else str(file)
        return values

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.pieces or self.special_tokens or self.chat_template):
            raise UsageError("nothing to add: give --pieces, --special-tokens or --chat-template.")


@dataclass(frozen=True)
class CompareTokenizersOptions(Options):
    """`data` are `[LABEL=]PATH`."""

    tokenizer: list[Path] = option(
        "Tokenizer (or model) directories; also without the flag.", metavar="PATH...", bare=True, commas=False
    )
    data: list[str] = option(f"[LABEL=]PATH of texts: {TEXTS_HELP}.")
    output: list[Path] = option("Also write the table to these files (.md, .json, .html).", [], commas=False)
    max_documents: int | None = option("Maximum number of documents per label (default: all).", None, least=1)
    tokenizer_scheme: str | None = option(SCHEME, None)
    reading: ReadOptions = group(ReadOptions)
