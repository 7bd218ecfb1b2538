"""Documents: one reader of text for every command (docs/data.md). Never imports torch."""

from llmforge.corpus.beginning import beginning
from llmforge.corpus.block import Block, Rejection
from llmforge.corpus.chunk import Chunk
from llmforge.corpus.document import Document, Place, Segment
from llmforge.corpus.options import ReadOptions
from llmforge.corpus.reader import Account, Reader, SourceNames, read_blocks
from llmforge.corpus.sources import default_categories, find_chunks, labelled
from llmforge.corpus.spans import Spans

__all__ = [
    "Account",
    "Block",
    "Chunk",
    "Document",
    "Place",
    "ReadOptions",
    "Reader",
    "Rejection",
    "Segment",
    "SourceNames",
    "Spans",
    "beginning",
    "default_categories",
    "find_chunks",
    "labelled",
    "read_blocks",
]
