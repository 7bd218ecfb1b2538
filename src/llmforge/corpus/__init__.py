"""Documents: one reader of text for every command (docs/data.md). Never imports torch, and nothing before it is needed:
the options of reading stand in the help of every command that reads.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmforge.corpus.block import Block, Rejection
    from llmforge.corpus.chunk import Chunk
    from llmforge.corpus.document import Document, Place, Segment
    from llmforge.corpus.options import ReadOptions
    from llmforge.corpus.reader import Account, Reader, SourceNames, read_blocks
    from llmforge.corpus.sources import default_categories, find_chunks, labeled
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
    "default_categories",
    "find_chunks",
    "labeled",
    "read_blocks",
]

_FILES = {
    "block": ("Block", "Rejection"),
    "chunk": ("Chunk",),
    "document": ("Document", "Place", "Segment"),
    "options": ("ReadOptions",),
    "reader": ("Account", "Reader", "SourceNames", "read_blocks"),
    "spans": ("Spans",),
    "sources": ("default_categories", "find_chunks", "labeled"),
}
_FILE_OF = {name: file for file, names in _FILES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _FILE_OF:
        raise AttributeError(name)
    return getattr(import_module(f"llmforge.corpus.{_FILE_OF[name]}"), name)
