"""Documents from all over a corpus, without reading it."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from llmforge.corpus import Chunk, ReadOptions, read_blocks

SAMPLE_CHUNKS, SAMPLE_BYTES, SAMPLE_BLOCK_BYTES = 32, 256 << 10, 64 << 10


def sample_texts(chunks: Sequence[Chunk], reading: ReadOptions, size: int = SAMPLE_BYTES) -> list[str]:
    """Documents from the beginnings of evenly spaced chunks, some `size` bytes, the same on every machine.

    Of each chunk those that fit into what is left of its share, else the beginning of the shortest: many documents
    say more than a long one, for which `tokenizers` needs 130 bytes of memory a byte.
    """
    count = min(len(chunks), SAMPLE_CHUNKS)
    texts: list[str] = []
    for i in range(count):
        left = size // count
        block = next(read_blocks(chunks[i * len(chunks) // count], reading, SAMPLE_BLOCK_BYTES), None)
        if not block:
            continue
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
    return texts
