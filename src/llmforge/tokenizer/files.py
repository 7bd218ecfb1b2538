"""The files of a directory of which a tokenizer is made."""

from pathlib import Path

from llmforge.errors import UserError, missing
from llmforge.tokenizer.formats.tiktoken_ranks import find_ranks

PATTERNS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "*.model",
    "*.tiktoken",
    "tekken*.json",
)


def tokenizer_files(directory: Path) -> list[Path]:
    """Every file that decides the ids, in name order: the inputs of a step that reads the tokenizer of `directory`."""
    if not directory.is_dir():
        if not directory.exists():
            raise missing(directory)
        raise UserError(f"{directory} is a file; give the tokenizer's directory.")
    found = {file for pattern in PATTERNS for file in directory.glob(pattern) if file.is_file()}
    if ranks := find_ranks(directory):
        found.add(ranks)
    return sorted(found)
