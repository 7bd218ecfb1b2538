"""Documents from all over a corpus, without reading it."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import pyarrow as pa

from llmforge.corpus import Chunk, ReadOptions, read_blocks
from llmforge.corpus.beginning import beginning

SAMPLE_CHUNKS, SAMPLE_BYTES, SAMPLE_BLOCK_BYTES = 32, 256 << 10, 64 << 10
# Of longer documents only the beginning is read, and that where there is no shorter one in so many blocks.
LONGEST_SAMPLED, BLOCKS_READ = 1 << 20, 16


def sample_texts(chunks: Sequence[Chunk], reading: ReadOptions, size: int = SAMPLE_BYTES) -> list[str]:
    """Documents from the beginnings of evenly spaced chunks, some `size` bytes, the same on every machine.

    Of each chunk those that fit into what is left of its share, else the beginning of the shortest: many documents
    say more than a long one, for which `tokenizers` needs 130 bytes of memory a byte. A chunk inside of a long document
    has none; the others then have its share.
    """
    count = min(len(chunks), SAMPLE_CHUNKS)
    short = replace(reading, max_document_bytes=min(LONGEST_SAMPLED, reading.max_document_bytes))
    texts: list[str] = []
    used: list[Chunk] = []
    for i in range(count):
        left, chunk = size // count, chunks[i * len(chunks) // count]
        blocks = islice(read_blocks(chunk, short, SAMPLE_BLOCK_BYTES), BLOCKS_READ)
        block = next(filter(len, blocks), None)
        if block is None:
            if first := beginning(chunk, reading, left):
                texts.append(first)
                used.append(chunk)
                continue
            block = next(read_blocks(chunk, reading, SAMPLE_BLOCK_BYTES), None)
        if not block:
            continue
        used.append(chunk)
        lengths, taken = np.diff(block.text_offsets).tolist(), []
        for document, length in enumerate(lengths):
            if length <= left:
                taken.append(document)
                left -= length
        if taken:
            texts += block.text.take(pa.array(taken)).to_pylist()
        else:
            shortest = lengths.index(min(lengths))
            begin = int(block.text_offsets[shortest])
            texts.append(bytes(block.text_data[begin : begin + left]).decode(errors="ignore"))
    return sample_texts(used, reading, size) if 0 < len(used) < count else texts
