"""`.json`: JSON lines, as many datasets ship them under this name; or a list of records, or records one after another.

Records are told apart without reading the file whole; the number of one takes the place of its line.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llmforge.corpus import streams
from llmforge.corpus.block import Block, Rejection, empty_block
from llmforge.corpus.chunk import Chunk
from llmforge.corpus.formats import jsonl
from llmforge.corpus.formats.base import Format, Ranges, byte_ranges
from llmforge.corpus.options import ReadOptions
from llmforge.corpus.records import schema_of, text_fields, to_block

SNIFFED_BYTES = 1 << 20
LARGEST_LINE_SNIFFED = 64 << 20
VALUES = -1  # `stop` of a chunk that is known not to be lines
# How a file that is cut off ends, to a parser: it would have gone on.
SPACE = " \t\r\n"


def ranges(path: Path, size: int, wanted: int, lines: bool) -> Ranges:
    with path.open("rb") as file:
        head = file.readline(LARGEST_LINE_SNIFFED)
        while head and not head.strip():
            head = file.readline(LARGEST_LINE_SNIFFED)
    return byte_ranges(path, size, wanted) if _is_line(head) else [(0, VALUES, size)]


def blocks(chunk: Chunk, options: ReadOptions, block_bytes: int) -> Iterator[Block]:
    if chunk.compression:
        with streams.open_chunk(chunk) as (_, stream):
            try:
                head = stream.readline(LARGEST_LINE_SNIFFED)
                while head and not head.strip():
                    head = stream.readline(LARGEST_LINE_SNIFFED)
            except streams.DAMAGE:
                head = b"{}"  # the reader of lines meets the damage again, and keeps what comes before it
        chunk = chunk if _is_line(head) else replace(chunk, stop=VALUES)
    if chunk.stop != VALUES:
        yield from jsonl.blocks(chunk, options, block_bytes)
    else:
        yield from _values(chunk, options, block_bytes)


def _is_line(head: bytes) -> bool:
    """Whether the first line that is not blank is a record (or nothing that could begin one on several lines)."""
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if begin == b"[":
        return False
    if begin != b"{":
        return True
    try:
        return isinstance(json.loads(head.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


def _values(chunk: Chunk, options: ReadOptions, block_bytes: int) -> Iterator[Block]:
    """The records of a list, or of several values that follow one another."""
    with streams.open_chunk(chunk) as (file, stream):
        values: dict[str, list[str | None]] = {name: [] for name in options.names}
        numbers: list[int] = []
        rejected: list[Rejection] = []
        held = count = position = 0

        def block() -> Block:
            nonlocal held, position
            table = pa.table(values, schema=schema_of(options))
            size, position = file.tell() - position, file.tell()
            lines = count - before
            made = to_block(
                table, np.array(numbers, np.int64), rejected[:], options, chunk.category, lines, size
            )
            held = 0
            for column in values.values():
                column.clear()
            numbers.clear()
            rejected.clear()
            return made

        before = 0
        for value, size in _Records(stream, options.max_document_bytes):
            if isinstance(value, Rejection):
                rejected.append(value)
                continue
            count += 1
            held += size
            if size > options.max_document_bytes:
                rejected.append(Rejection(count, f"the record is {options.too_long}"))
                continue
            try:
                record = text_fields(value, options)
            except ValueError as error:
                rejected.append(Rejection(count, str(error)))
            else:
                numbers.append(count)
                for name, column in values.items():
                    column.append(record[name])
            if held >= block_bytes:
                yield block()
                before = count
        if numbers or rejected:
            yield block()
        elif not count:
            yield empty_block([], 0)


class _Records:
    """The values of a JSON text, each with the length of its spelling; a `Rejection` of line 0 where the rest of it
    cannot be read.
    """

    def __init__(self, stream: Any, longest: int) -> None:
        import codecs

        self.stream, self.longest = stream, longest
        self.decode = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.ended = "", 0, False
        self.lost = ""

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        parse = json.JSONDecoder().raw_decode
        in_list = self._skip() == "["
        if in_list:
            self.at += 1
        first = True
        while True:
            character = self._skip()
            if in_list and character == "]":
                self.at += 1
                in_list = False
                if self._skip():
                    yield Rejection(0, "broken JSON (text after the list)"), 0
                return
            if not character:
                if self.lost or in_list:
                    yield Rejection(0, self.lost or "broken JSON (the list is truncated)"), 0
                return
            if in_list and not first:
                if character != ",":
                    yield Rejection(0, "broken JSON (a comma is missing between two records)"), 0
                    return
                self.at += 1
                self._skip()
            first = False
            wanted = SNIFFED_BYTES
            while True:
                try:
                    value, end = parse(self.text, self.at)
                    # A number at the end of what was read may continue.
                    if end < len(self.text) or self.ended or isinstance(value, dict):
                        break
                except (ValueError, RecursionError) as error:
                    if self.ended or isinstance(error, RecursionError):
                        yield Rejection(0, self.lost or "broken JSON"), 0
                        return
                if len(self.text) - self.at > self.longest:
                    yield Rejection(0, f"a record that is broken, or longer than {self.longest} bytes"), 0
                    return
                wanted *= 2  # so that a long record is not parsed for every megabyte of it
                self._fill(wanted)
            size, self.at = end - self.at, end
            yield value, size

    def _skip(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in SPACE:
                    return self.text[self.at]
                self.at += 1
            if self.ended:
                return ""
            self._fill(SNIFFED_BYTES)

    def _fill(self, size: int) -> None:
        data, damage = streams.read(self.stream, size)
        self.ended = bool(damage) or len(data) < size
        self.lost = damage
        try:
            more = self.decode.decode(data, self.ended and not damage)
        except UnicodeDecodeError:
            more, self.ended, self.lost = "", True, "invalid UTF-8"
        self.text, self.at = self.text[self.at :] + more, 0


FORMAT = Format((".json",), blocks, ranges)
