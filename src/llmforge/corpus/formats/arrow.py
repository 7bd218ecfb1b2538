"""Arrow's streams and files, such as those in a directory of `datasets.save_to_disk`: a row is a record."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from llmforge.corpus.block import Block, Rejection, empty_block
from llmforge.corpus.chunk import Chunk
from llmforge.corpus.formats.base import Format
from llmforge.corpus.formats.columns import as_text, columns_of, first_line, unusable
from llmforge.corpus.options import ReadOptions
from llmforge.corpus.records import to_block

DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError, ValueError)


def blocks(chunk: Chunk, options: ReadOptions, block_bytes: int) -> Iterator[Block]:
    done = 0
    try:
        with pa.memory_map(chunk.path) as source:
            for batch in _batches(source):
                if reason := unusable(batch.schema, options, "the Arrow file"):
                    yield empty_block([Rejection(0, reason, len(batch))] if len(batch) else [], len(batch))
                    done += len(batch)
                    continue
                batch = batch.select(columns_of(batch.schema, options))
                step = max(1, block_bytes * len(batch) // max(1, batch.nbytes))
                for start in range(0, len(batch), step):
                    part = batch.slice(start, step)
                    part.validate(full=True)
                    numbers = np.arange(len(part)) + 1 + done
                    done += len(part)
                    table, numbers, bad = as_text(part, numbers, options)
                    size = min(chunk.size, part.nbytes)
                    yield to_block(table, numbers, bad, options, chunk.category, len(part), size)
    except DAMAGE as error:
        yield empty_block([Rejection(0, f"the Arrow file is damaged or truncated ({first_line(error)})")], 0)


def _batches(source: Any) -> Iterator[pa.RecordBatch]:
    """The batches of a stream (what `datasets` writes) or of a file."""
    if source.read(6) == b"ARROW1":
        source.seek(0)
        with pa.ipc.open_file(source) as file:
            for number in range(file.num_record_batches):
                yield file.get_batch(number)
        return
    source.seek(0)
    with pa.ipc.open_stream(source) as stream:
        yield from stream


FORMAT = Format((".arrow",), blocks, compressible=False)
