"""Chunks of files to blocks of documents, in Arrow arrays; what cannot be read is named and counted.

A block of lines is parsed by Arrow at once. Where Arrow refuses it, or where it cannot be certain that every
line is one object, the block is parsed again line by line, which finds the lines to reject; both ways read a
good line alike.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import zstandard

from llmforge.data.options import Fields
from llmforge.data.sources import Chunk

BLOCK_BYTES = 8 << 20
LONGEST_LINE = 256 << 20


@dataclass(frozen=True)
class Rejection:
    """A line (1-based in its chunk; 0: the file as a whole) or several documents that could not be read."""

    line: int
    reason: str
    documents: int = 1


@dataclass(frozen=True)
class Block:
    """Documents that follow one another in a chunk.

    `text` is source + target, UTF-8; `source_bytes` (n,) int64 how much of it is source; `category` a
    dictionary array of names; `line` (n,) int64, 1-based in the chunk. `lines` counts the lines of the block,
    blank ones too, and `size` the bytes on disk that it took.
    """

    text: pa.StringArray
    source_bytes: npt.NDArray[np.int64]
    category: pa.DictionaryArray
    line: npt.NDArray[np.int64]
    rejected: list[Rejection] = field(default_factory=list)
    lines: int = 0
    size: int = 0

    def __len__(self) -> int:
        return len(self.text)

    @property
    def text_offsets(self) -> npt.NDArray[np.int32]:
        """(n + 1,) int32: where each text begins in `text_data`."""
        offsets = np.frombuffer(self.text.buffers()[1] or bytes(4), np.int32)
        return offsets[self.text.offset : self.text.offset + len(self) + 1]

    @property
    def text_data(self) -> memoryview:
        """The UTF-8 bytes that `text_offsets` cut."""
        return memoryview(self.text.buffers()[2] or b"")

    @property
    def text_bytes(self) -> int:
        return int(self.text_offsets[-1] - self.text_offsets[0])

    def take(self, order: npt.NDArray[np.int64]) -> "Block":
        """The documents with these numbers, in this order."""
        rows = pa.array(order)
        text, category = self.text.take(rows), self.category.take(rows)
        return replace(
            self, text=text, source_bytes=self.source_bytes[order], category=category, line=self.line[order]
        )

    def head(self, n: int) -> "Block":
        """The first `n` documents, with their share of the bytes."""
        return replace(self.take(np.arange(n)), size=self.size * n // max(1, len(self)))


def read_blocks(chunk: Chunk, fields: Fields, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The documents of `chunk` in order, some `block_bytes` of text at a time."""
    if chunk.kind == ".parquet":
        yield from _parquet_blocks(chunk, fields, block_bytes)
        return
    before = position = 0
    for data, reached in _line_blocks(chunk, block_bytes):
        size, position = reached - position, reached
        if isinstance(data, Rejection):
            lines = 1 if data.line else 0
            yield _empty_block([Rejection(before + 1 if data.line else 0, data.reason)], lines)
            before += lines
            continue
        ends = _line_ends(data)
        lines = len(ends)
        table = _parse_block(data, ends, fields)
        if table is not None:
            yield _documents(table, np.arange(lines) + 1 + before, [], fields, chunk, lines, size)
        else:
            good, numbers, rejected = _parse_lines(data, fields, before + 1)
            yield _documents(good, numbers, rejected, fields, chunk, lines, size)
        before += lines


def _line_blocks(chunk: Chunk, block_bytes: int) -> Iterator[tuple[bytes | Rejection, int]]:
    """Blocks of whole lines, or a `Rejection` (line 1: one line, 0: the rest of the file) where something is
    lost.

    With each, how many bytes of the chunk were read so far, on disk.
    """
    with _open(chunk) as (file, stream):
        # How many bytes of this chunk are still unread, where it is part of a plain file.
        left = chunk.stop - chunk.start if chunk.kind == ".jsonl" else None
        if left is not None and chunk.start:
            stream.seek(chunk.start - 1)
            left -= _skip_line(stream) - 1  # a line that began before belongs to the chunk before
        held = b""
        while left is None or left > 0:
            data, damage = _read(stream, block_bytes if left is None else min(block_bytes, left))
            if left is not None:
                left -= len(data)
                if left <= 0 and not data.endswith(b"\n"):
                    data += stream.readline(LONGEST_LINE + 1)
            position = file.tell() - chunk.start
            held += data
            end = held.rfind(b"\n") + 1
            if end:
                yield held[:end], position
                held = held[end:]
            if damage:  # what follows the last newline is not a whole line
                yield Rejection(0, f"the compressed file is damaged or cut off ({damage})"), position
                return
            if not data:
                break
            if len(held) > LONGEST_LINE:
                skipped = _skip_line(stream)
                left = None if left is None else left - skipped
                held = b""
                yield Rejection(1, f"the line is longer than {LONGEST_LINE >> 20} MiB"), position
        if held:
            yield held, position


def _read(stream: IO[bytes], size: int) -> tuple[bytes, str]:
    """Up to `size` bytes, fewer at the end of the file; with them what is wrong with the file there, if
    anything.

    `read1` hands over what was decompressed before the damage; `read` would throw it away.
    """
    parts, got = [], 0
    try:
        while got < size and (part := stream.read1(size - got)):  # type: ignore[attr-defined]
            parts.append(part)
            got += len(part)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        return b"".join(parts), str(error).rstrip(".") or type(error).__name__
    return b"".join(parts), ""


def _skip_line(stream: IO[bytes]) -> int:
    """Reads past the next newline; how many bytes that were."""
    skipped = 0
    while part := stream.readline(BLOCK_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


@contextmanager
def _open(chunk: Chunk) -> Iterator[tuple[IO[bytes], Any]]:
    """The file of a chunk, and the stream of its lines."""
    with open(chunk.path, "rb") as file:
        if chunk.kind == ".jsonl.gz":
            yield file, gzip.GzipFile(fileobj=file)
        elif chunk.kind == ".jsonl.zst":
            yield file, io.BufferedReader(_ZstdReader(file), 1 << 20)
        else:
            yield file, file


class _ZstdReader(io.RawIOBase):
    """A zstd file that raises `EOFError` where its last frame is cut off, as gzip does."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.decoder: zstandard.ZstdDecompressionObj | None = None
        self.compressed = self.plain = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.plain:
            self.compressed = self.compressed or self.file.read(256 << 10)
            if not self.compressed:
                if self.decoder is not None:
                    raise EOFError("the last frame is cut off")
                return 0
            self.decoder = self.decoder or zstandard.ZstdDecompressor().decompressobj()
            self.plain = self.decoder.decompress(self.compressed)
            self.compressed = b""
            if self.decoder.eof:
                self.compressed, self.decoder = self.decoder.unused_data, None
        size = min(len(buffer), len(self.plain))
        buffer[:size], self.plain = self.plain[:size], self.plain[size:]
        return size


def _line_ends(data: bytes) -> npt.NDArray[np.int64]:
    """Where each line of `data` ends."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    return ends if data.endswith(b"\n") else np.append(ends, len(data))


def _parse_block(data: bytes, ends: npt.NDArray[np.int64], fields: Fields) -> pa.Table | None:
    """The fields of every line, or None where Arrow refuses a line or a line may not be one object.

    Between two top-level objects nothing but white space may stand, inside an array or object `}` is never
    followed by `{`: so if every line begins with `{` and ends with `}`, and there are as many objects as
    lines, each line is one object.
    """
    import pyarrow.json as pj

    view = np.frombuffer(data, np.uint8)
    starts = np.append(0, ends[:-1] + 1)
    if (ends <= starts).any() or (view[starts] != ord("{")).any() or (view[ends - 1] != ord("}")).any():
        return None
    schema = pa.schema([(name, pa.string()) for name in fields.names])
    try:
        pa.Array.from_buffers(
            pa.string(), 1, [None, pa.py_buffer(np.array([0, len(data)], np.int32)), pa.py_buffer(data)]
        ).validate(full=True)  # as UTF-8; what is valid here and escaped in JSON is valid in the table
        table = pj.read_json(
            pa.BufferReader(data),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowException:
        return None
    return table.combine_chunks() if table.num_rows == len(ends) else None


def _parse_lines(
    data: bytes, fields: Fields, first: int
) -> tuple[pa.Table, npt.NDArray[np.int64], list[Rejection]]:
    """The good lines of `data`, their numbers, and the bad ones; blank lines are neither."""
    values: dict[str, list[str | None]] = {name: [] for name in fields.names}
    numbers, rejected = [], []
    for number, line in enumerate(data.split(b"\n"), first):
        if not line.strip():
            continue
        try:
            record = _parse_line(line, fields)
        except ValueError as error:
            rejected.append(Rejection(number, str(error)))
            continue
        numbers.append(number)
        for name in values:
            values[name].append(record.get(name))
    schema = pa.schema([(name, pa.string()) for name in fields.names])
    return pa.table(values, schema=schema), np.array(numbers, np.int64), rejected


def _parse_line(line: bytes, fields: Fields) -> dict[str, str | None]:
    """The object of one line; a `ValueError` says why there is none."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("invalid UTF-8") from None
    except (ValueError, RecursionError):
        raise ValueError("broken JSON") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    for name in fields.names:
        value = record.get(name)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"'{name}' is not text")
        if value is not None:
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError(f"'{name}' holds half a surrogate pair") from None
    return record


def _documents(
    table: pa.Table,
    numbers: npt.NDArray[np.int64],
    rejected: list[Rejection],
    fields: Fields,
    chunk: Chunk,
    lines: int,
    size: int,
) -> Block:
    """Parsed lines as a block: documents without text are rejected, missing categories filled in."""
    import pyarrow.compute as pc

    column = {name: _flat(table[name]) for name in fields.names}
    target = pc.coalesce(*(column[name] for name in fields.texts))
    keep = np.asarray(pc.fill_null(pc.greater(pc.binary_length(target), 0), False))
    if not keep.all():
        missing = np.asarray(pc.is_null(target))
        for row in np.flatnonzero(~keep).tolist():
            reason = f"no {' or '.join(repr(n) for n in fields.texts)}" if missing[row] else "empty text"
            rejected.append(Rejection(int(numbers[row]), reason))
        rejected.sort(key=lambda entry: entry.line)
        mask = pa.array(keep)
        target, numbers = target.filter(mask), numbers[keep]
        column = {name: values.filter(mask) for name, values in column.items()}
    source_bytes = np.zeros(len(target), np.int64)
    if column["source"].null_count < len(target):
        source = pc.fill_null(column["source"], "")
        source_bytes = np.asarray(pc.binary_length(source)).astype(np.int64)
        target = pc.binary_join_element_wise(source, target, "")
    named = pc.fill_null(column[fields.category], "")
    category = pc.dictionary_encode(pc.if_else(pc.equal(named, ""), chunk.category, named))
    return Block(target, source_bytes, category, numbers, rejected, lines, size)


def _parquet_blocks(chunk: Chunk, fields: Fields, block_bytes: int) -> Iterator[Block]:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(chunk.path)
        groups = list(range(chunk.start, chunk.stop))
        rows = sum(file.metadata.row_group(group).num_rows for group in groups)
    except (pa.ArrowException, OSError) as error:
        yield _empty_block(
            [Rejection(0, f"the parquet file is damaged or cut off ({_first_line(error)})")], 0
        )
        return
    if reason := _unusable(file.schema_arrow, fields):
        yield _empty_block([Rejection(0, reason, rows)] if rows else [], rows)
        return
    present = file.schema_arrow.names
    columns = [name for name in fields.names if name in present]
    done = 0
    try:
        for batch in file.iter_batches(
            _rows_per_block(file, block_bytes), row_groups=groups, columns=columns
        ):
            numbers = np.arange(len(batch)) + 1 + done
            done += len(batch)
            table = pa.table(
                {n: batch[n] if n in present else pa.nulls(len(batch), pa.string()) for n in fields.names}
            )
            table, numbers, bad = _as_text(table, numbers)
            size = chunk.size * len(batch) // rows
            yield _documents(table, numbers, bad, fields, chunk, len(batch), size)
    except (pa.ArrowException, OSError) as error:
        reason = f"the parquet file is damaged ({_first_line(error)})"
        yield _empty_block([Rejection(0, reason, rows - done)], rows - done)


def _rows_per_block(file: Any, block_bytes: int) -> int:
    groups = range(file.metadata.num_row_groups)
    size = sum(file.metadata.row_group(group).total_byte_size for group in groups)
    return int(min(max(1, block_bytes * file.metadata.num_rows // max(1, size)), 1 << 20))


def _unusable(schema: pa.Schema, fields: Fields) -> str:
    """Why no row of a parquet file with this schema can be used, if so."""
    if not set(fields.texts) & set(schema.names):
        return f"the parquet file has no column {' or '.join(repr(name) for name in fields.texts)}"
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    raw = (pa.types.is_null, pa.types.is_binary, pa.types.is_large_binary)
    for name in fields.names:
        if name in schema.names:
            kind = schema.field(name).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not any(check(kind) for check in (*text, *raw)):
                return f"column '{name}' of the parquet file is {kind}, not text"
    return ""


def _as_text(
    table: pa.Table, numbers: npt.NDArray[np.int64]
) -> tuple[pa.Table, npt.NDArray[np.int64], list[Rejection]]:
    """The columns as strings, their rows' numbers, and the rows that are not UTF-8."""
    schema = pa.schema([(name, pa.string()) for name in table.column_names])
    raw = table.cast(pa.schema([(name, pa.binary()) for name in table.column_names]))
    try:
        text = raw.cast(schema)
        text.validate(full=True)
        return text, numbers, []
    except pa.ArrowException:
        pass
    good, bad, rows = [], [], []
    for position, row in enumerate(raw.to_pylist()):
        try:
            rows.append({name: value if value is None else value.decode() for name, value in row.items()})
            good.append(position)
        except UnicodeDecodeError:
            bad.append(Rejection(int(numbers[position]), "invalid UTF-8"))
    return pa.Table.from_pylist(rows, schema=schema), numbers[good], bad


def _empty_block(rejected: list[Rejection], lines: int) -> Block:
    nothing = np.zeros(0, np.int64)
    return Block(
        pa.array([], pa.string()),
        nothing,
        pa.array([], pa.string()).dictionary_encode(),
        nothing,
        rejected,
        lines,
    )


def _flat(values: Any) -> Any:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
