"""Documents from all over a corpus, without reading it."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from llmforge.data.options import Fields
from llmforge.data.reading import read_blocks
from llmforge.data.sources import Chunk

SAMPLE_CHUNKS, SAMPLE_BYTES, SAMPLE_BLOCK_BYTES = 32, 256 << 10, 64 << 10


def sample_texts(chunks: Sequence[Chunk], fields: Fields, size: int = SAMPLE_BYTES) -> list[str]:
    """Documents from the beginnings of evenly spaced chunks, some `size` bytes, the same on every machine.

    Of each chunk those that fit into what is left of its share, else the shortest: many documents say more than
    a long one, which `tokenizers` also takes longer for.
    """
    count = min(len(chunks), SAMPLE_CHUNKS)
    texts: list[str] = []
    for i in range(count):
        left = size // count
        block = next(read_blocks(chunks[i * len(chunks) // count], fields, SAMPLE_BLOCK_BYTES), None)
        if not block:
            continue
        lengths, taken = np.diff(block.text_offsets).tolist(), []
        for document, length in enumerate(lengths):
            if length <= left:
                taken.append(document)
                left -= length
        texts += block.text.take(pa.array(taken or [lengths.index(min(lengths))])).to_pylist()
    return texts
