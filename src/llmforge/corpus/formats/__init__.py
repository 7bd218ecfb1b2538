"""The formats that can be read, by the suffix of a file. A new one is a file here, and a name in this list."""

from llmforge.corpus.formats import arrow, json_file, jsonl, parquet, text
from llmforge.corpus.formats.base import Format

FORMATS: dict[str, Format] = {
    suffix: one.FORMAT for one in (jsonl, json_file, parquet, arrow, text) for suffix in one.FORMAT.suffixes
}


def format_of(kind: str) -> Format:
    """The format of files with the suffix `kind`."""
    return FORMATS[kind]
