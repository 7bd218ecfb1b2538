"""What a format is: how its files are divided, and how their documents are read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from llmforge.corpus.block import Block
from llmforge.corpus.chunk import Chunk
from llmforge.corpus.options import ReadOptions

# (start, stop, share of the bytes on disk) of each chunk of a file
Ranges = list[tuple[int, int, int]]


def whole(path: Path, size: int, wanted: int, lines: bool) -> Ranges:
    """One chunk."""
    return [(0, size, size)]


def byte_ranges(path: Path, size: int, wanted: int, lines: bool = True) -> Ranges:
    """Chunks of about `wanted` bytes."""
    count = max(1, round(size / wanted))
    cuts = [size * i // count for i in range(count + 1)]
    return [(a, b, b - a) for a, b in pairwise(cuts)]


@dataclass(frozen=True)
class Format:
    """`blocks(chunk, options, block_bytes)` reads the documents of a chunk in order, some `block_bytes` of text at a time;
    `ranges(path, size, wanted, lines)` divides a file that is not compressed into chunks of about `wanted` bytes.
    """

    suffixes: tuple[str, ...]
    blocks: Callable[[Chunk, ReadOptions, int], Iterator[Block]]
    ranges: Callable[[Path, int, int, bool], Ranges] = whole
    compressible: bool = True
