"""Plain text: the file is a document, or with `lines` each of its lines that is not blank."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmforge.corpus import streams
from llmforge.corpus.block import Block, Rejection, empty_block
from llmforge.corpus.chunk import Chunk
from llmforge.corpus.formats.base import Format, Ranges, byte_ranges, whole
from llmforge.corpus.formats.jsonl import line_ends, line_starts
from llmforge.corpus.options import ReadOptions
from llmforge.corpus.spans import Spans

BOM = b"\xef\xbb\xbf"
NUL = "contains NUL bytes, so it is not UTF-8 text"


def ranges(path: Path, size: int, wanted: int, lines: bool) -> Ranges:
    return byte_ranges(path, size, wanted) if lines else whole(path, size, wanted, lines)


def blocks(chunk: Chunk, options: ReadOptions, block_bytes: int) -> Iterator[Block]:
    if options.lines:
        yield from _line_documents(chunk, options, block_bytes)
        return
    with streams.open_chunk(chunk) as (_, stream):
        data, damage = streams.read(stream, options.max_document_bytes + len(BOM) + 1)
    data = data.removeprefix(BOM)
    reason = damage or (options.too_long if len(data) > options.max_document_bytes else "") or _fault(data)
    if reason or not data.strip():
        line = 1 if not damage else 0
        yield empty_block([Rejection(line, reason or "empty text")], 1, chunk.size)
        return
    yield _block([data], [1], [], chunk, 1, chunk.size)


def _line_documents(chunk: Chunk, options: ReadOptions, block_bytes: int) -> Iterator[Block]:
    before = position = 0
    for data, reached in streams.line_blocks(
        chunk, block_bytes, options.max_document_bytes, options.too_long
    ):
        size, position = reached - position, reached
        if isinstance(data, Rejection):
            lines = 1 if data.line else 0
            yield empty_block([Rejection(before + 1 if data.line else 0, data.reason)], lines)
            before += lines
            continue
        if not before and not chunk.start:
            data = data.removeprefix(BOM)
        texts, numbers, rejected = [], [], []
        ends = line_ends(data)
        starts = line_starts(ends)
        whole_is_text = not _fault(data)
        for number in np.flatnonzero(ends > starts).tolist():
            line = data[starts[number] : ends[number]].removesuffix(b"\r")
            if not line.strip():
                continue
            if len(line) > options.max_document_bytes:
                rejected.append(Rejection(before + 1 + number, f"the line is {options.too_long}"))
                continue
            if not whole_is_text and (fault := _fault(line)):
                rejected.append(Rejection(before + 1 + number, fault))
                continue
            texts.append(line)
            numbers.append(before + 1 + number)
        yield _block(texts, numbers, rejected, chunk, len(ends), size)
        before += len(ends)


def _fault(data: bytes) -> str:
    """Why these bytes are no text, if so."""
    if b"\0" in data:
        return NUL
    try:
        data.decode()
    except UnicodeDecodeError:
        return "invalid UTF-8"
    return ""


def _block(
    texts: list[bytes], numbers: list[int], rejected: list[Rejection], chunk: Chunk, lines: int, size: int
) -> Block:
    import pyarrow.compute as pc

    text = pa.array(texts, pa.binary()).cast(pa.string())
    category = pc.dictionary_encode(pa.array([chunk.category] * len(texts), pa.string()))
    return Block(text, Spans.none(len(texts)), category, np.array(numbers, np.int64), rejected, lines, size)


FORMAT = Format((".txt", ".md"), blocks, ranges)
