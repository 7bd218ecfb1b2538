"""JSON lines: a record a line.

A block of lines is parsed by Arrow at once. Where Arrow refuses it, or where it cannot be certain that every
line is one object, the block is parsed again line by line, which finds the lines to reject; both ways read a
good line alike.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llmforge.corpus.block import Block, Rejection, empty_block
from llmforge.corpus.chunk import Chunk
from llmforge.corpus.formats.base import Format, byte_ranges
from llmforge.corpus.options import ReadOptions
from llmforge.corpus.records import schema_of, text_fields, to_block
from llmforge.corpus.streams import line_blocks


def blocks(chunk: Chunk, options: ReadOptions, block_bytes: int) -> Iterator[Block]:
    before = position = 0
    longest = options.max_document_bytes
    for data, reached in line_blocks(chunk, block_bytes, longest, options.too_long):
        size, position = reached - position, reached
        if isinstance(data, Rejection):
            lines = 1 if data.line else 0
            yield empty_block([Rejection(before + 1 if data.line else 0, data.reason)], lines)
            before += lines
            continue
        ends = line_ends(data)
        lines = len(ends)
        whole = (ends - line_starts(ends) <= longest).all()
        table = _parse_block(data, ends, options) if whole and not options.one_by_one else None
        if table is not None:
            numbers, rejected = np.arange(lines) + 1 + before, list[Rejection]()
        else:
            table, numbers, rejected = _parse_lines(data, ends, options, before + 1)
        del data, ends  # a block may be one long document, of which no copy is kept
        block = to_block(table, numbers, rejected, options, chunk.category, lines, size)
        del table
        yield block
        del block
        before += lines


def line_ends(data: bytes) -> npt.NDArray[np.int64]:
    """Where each line of `data` ends."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    return ends if data.endswith(b"\n") else np.append(ends, len(data))


def line_starts(ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each line begins, from where it ends."""
    return np.append(0, ends[:-1] + 1)


def parse_line(line: bytes, options: ReadOptions) -> dict[str, str | None]:
    """The fields of one line; a `ValueError` says why it is no document."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("invalid UTF-8") from None
    except (ValueError, RecursionError):
        raise ValueError("broken JSON") from None
    return text_fields(record, options)


def _parse_block(data: bytes, ends: npt.NDArray[np.int64], options: ReadOptions) -> pa.Table | None:
    """The fields of every line, or None where Arrow refuses a line or a line may not be one object.

    Between two top-level objects nothing but white space may stand, inside an array or object `}` is never
    followed by `{`: so if every line begins with `{` and ends with `}`, and there are as many objects as
    lines, each line is one object.
    """
    import pyarrow.json as pj

    view = np.frombuffer(data, np.uint8)
    starts = line_starts(ends)
    if (ends <= starts).any() or (view[starts] != ord("{")).any() or (view[ends - 1] != ord("}")).any():
        return None
    wanted = _nested_schema(options.names)
    if wanted is None:
        return None
    try:
        pa.Array.from_buffers(
            pa.string(), 1, [None, pa.py_buffer(np.array([0, len(data)], np.int32)), pa.py_buffer(data)]
        ).validate(full=True)  # as UTF-8; what is valid here and escaped in JSON is valid in the table
        table = pj.read_json(
            pa.BufferReader(data),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pj.ParseOptions(explicit_schema=wanted, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowException:
        return None
    if table.num_rows != len(ends):
        return None
    table = table.combine_chunks()
    columns = [_column(table, name) for name in options.names]
    return pa.table(columns, schema=schema_of(options))


def _nested_schema(names: list[str]) -> pa.Schema | None:
    """The columns that Arrow is to read for fields like `meta.lang`, and for keys that are spelled so; None where
    one field lies inside another.
    """
    tree: dict[str, Any] = {}
    for name in names:
        if "." in name:
            *outer, last = name.split(".")
            inside = tree
            for key in outer:
                inside = inside.setdefault(key, {})
                if not isinstance(inside, dict):
                    return None
            if isinstance(inside.get(last), dict):
                return None
            inside[last] = None
        if isinstance(tree.get(name), dict):
            return None
        tree[name] = None
    return pa.schema(_types(tree))


def _types(tree: dict[str, Any]) -> list[pa.Field]:
    return [
        pa.field(name, pa.string() if inner is None else pa.struct(_types(inner)))
        for name, inner in tree.items()
    ]


def _column(table: pa.Table, name: str) -> Any:
    import pyarrow.compute as pc

    if "." not in name:
        return table[name]
    first, *keys = name.split(".")
    return pc.coalesce(table[name], pc.struct_field(table[first], keys))


def _parse_lines(
    data: bytes, ends: npt.NDArray[np.int64], options: ReadOptions, first: int
) -> tuple[pa.Table, npt.NDArray[np.int64], list[Rejection]]:
    """The good lines of `data`, their numbers (from `first` on), and the bad ones; blank lines are neither."""
    values: dict[str, list[str | None]] = {name: [] for name in options.names}
    numbers, rejected = [], []
    starts = line_starts(ends)
    for number in np.flatnonzero(ends > starts).tolist():
        if ends[number] - starts[number] > options.max_document_bytes:
            rejected.append(Rejection(first + number, f"the line is {options.too_long}"))
            continue
        line = data[starts[number] : ends[number]]
        if not line.strip():
            continue
        try:
            record = parse_line(line, options)
        except ValueError as error:
            rejected.append(Rejection(first + number, str(error)))
            continue
        numbers.append(first + number)
        for name, column in values.items():
            column.append(record[name])
    return pa.table(values, schema=schema_of(options)), np.array(numbers, np.int64), rejected


FORMAT = Format((".jsonl", ".ndjson"), blocks, byte_ranges)
