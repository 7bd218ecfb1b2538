"""Parquet: a row is a record."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llmforge.corpus.block import Block, Rejection, empty_block
from llmforge.corpus.chunk import Chunk
from llmforge.corpus.formats.base import Format, Ranges
from llmforge.corpus.formats.columns import as_text, columns_of, first_line, unusable
from llmforge.corpus.options import ReadOptions
from llmforge.corpus.records import to_block
from llmforge.corpus.streams import LARGEST_RATIO, UNCHECKED_BYTES
from llmforge.errors import UserError

DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)


def ranges(path: Path, size: int, wanted: int, lines: bool) -> Ranges:
    """Row groups, as many together as make `wanted` bytes."""
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path)
    except DAMAGE:
        return [(0, 0, size)]  # whoever reads the chunk meets the same error, and counts it
    found, start, held = [], 0, 0
    for group in range(metadata.num_row_groups):
        held += metadata.row_group(group).total_byte_size
        if held >= wanted or group == metadata.num_row_groups - 1:
            found.append((start, group + 1, held))
            start, held = group + 1, 0
    on_disk = size / max(1, sum(share for _, _, share in found))
    return [(a, b, int(share * on_disk)) for a, b, share in found]


def blocks(chunk: Chunk, options: ReadOptions, block_bytes: int) -> Iterator[Block]:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(chunk.path)
        groups = list(range(chunk.start, chunk.stop))
        rows = sum(file.metadata.row_group(group).num_rows for group in groups)
        reason = unusable(file.schema_arrow, options, "the parquet file")
        # Pages are decompressed whole: what the file itself says of them is refused before.
        columns = columns_of(file.schema_arrow, options)
        _check_ratio(
            chunk, max((_decompressed(file.metadata.row_group(g), columns) for g in groups), default=0)
        )
    except DAMAGE as error:
        yield empty_block(
            [Rejection(0, f"the parquet file is damaged or truncated ({first_line(error)})")], 0
        )
        return
    if reason:
        yield empty_block([Rejection(0, reason, rows)] if rows else [], rows)
        return
    done = made = 0
    try:
        for batch in _batches(file, groups, columns_of(file.schema_arrow, options), block_bytes):
            numbers = np.arange(len(batch)) + 1 + done
            done += len(batch)
            made += batch.nbytes
            _check_ratio(chunk, made)
            table, numbers, bad = as_text(batch, numbers, options)
            size = chunk.size * len(batch) // rows
            yield to_block(table, numbers, bad, options, chunk.category, len(batch), size)
    except DAMAGE as error:
        reason = f"the parquet file is damaged ({first_line(error)})"
        yield empty_block([Rejection(0, reason, rows - done)], rows - done)


def _decompressed(group: Any, columns: list[str]) -> int:
    """How many bytes the `columns` of a row group take when they are decompressed, as its description says."""
    parts = (group.column(i) for i in range(group.num_columns))
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] in columns)


def _check_ratio(chunk: Chunk, size: int) -> None:
    """Raises `UserError` where `size` bytes are more than texts make of the bytes on disk."""
    if size > max(UNCHECKED_BYTES, LARGEST_RATIO * chunk.size):
        raise UserError(
            f"{chunk.name} expands to more than {LARGEST_RATIO} times its size, as a decompression bomb does; "
            "if it is a text, write it as .jsonl first."
        )


def _batches(file: Any, groups: list[int], columns: list[str], block_bytes: int) -> Iterator[pa.RecordBatch]:
    """Batches of about `block_bytes`."""
    metadata = file.metadata
    size = sum(metadata.row_group(group).total_byte_size for group in groups)
    rows = sum(metadata.row_group(group).num_rows for group in groups)
    together = int(min(max(1, block_bytes * rows // max(1, size)), 1 << 20))
    for batch in file.iter_batches(together, row_groups=groups, columns=columns):
        each = max(1, batch.nbytes // max(1, len(batch)))
        step = max(1, block_bytes // each)
        for start in range(0, len(batch), step):
            yield batch.slice(start, step)


FORMAT = Format((".parquet",), blocks, ranges, compressible=False)
