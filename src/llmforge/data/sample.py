"""Documents from all over a corpus, without reading it."""

from collections.abc import Sequence

from llmforge.data.options import Fields
from llmforge.data.reading import read_blocks
from llmforge.data.sources import Chunk

SAMPLE_CHUNKS, SAMPLE_BYTES, SAMPLE_BLOCK_BYTES = 32, 256 << 10, 64 << 10


def sample_texts(chunks: Sequence[Chunk], fields: Fields, size: int = SAMPLE_BYTES) -> list[str]:
    """Documents from the beginnings of evenly spaced chunks, some `size` bytes, the same on every machine."""
    count = min(len(chunks), SAMPLE_CHUNKS)
    texts: list[str] = []
    for i in range(count):
        left = size // count
        block = next(read_blocks(chunks[i * len(chunks) // count], fields, SAMPLE_BLOCK_BYTES), None)
        for text in block.text if block else ():
            if left <= 0:
                break
            texts.append(text.as_py())
            left -= len(texts[-1].encode())
    return texts
