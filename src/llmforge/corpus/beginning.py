"""The beginning of a long document, without reading it."""

import json
from itertools import product

from llmforge.corpus import streams
from llmforge.corpus.chunk import Chunk
from llmforge.corpus.options import ReadOptions
from llmforge.corpus.records import text_fields

LONGEST_ESCAPE = 12  # two halves of a surrogate pair


def beginning(chunk: Chunk, options: ReadOptions, size: int) -> str | None:
    """Some `size` bytes of the first document of a chunk of text or JSON; None where that cannot be had."""
    if chunk.kind in (".txt", ".md"):
        return streams.beginning(chunk, size).decode("utf-8", "ignore") or None
    if chunk.kind not in (".jsonl", ".ndjson", ".json"):
        return None
    text = streams.beginning(chunk, size).decode("utf-8-sig", "ignore").lstrip("[ \t\r\n")
    # It most likely ends inside the text: a string, in a record or in one that lies in another.
    for end, close in product(range(len(text), len(text) - LONGEST_ESCAPE, -1), ('"}', '"}}')):
        try:
            found = text_fields(json.loads(text[:end] + close), options)
        except (ValueError, RecursionError):
            continue
        return next((found[name] for name in options.texts if found[name]), None)
    return None
