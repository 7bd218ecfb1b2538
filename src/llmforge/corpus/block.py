"""Documents that follow one another in a file, in Arrow arrays."""

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llmforge.corpus.document import Document, Place, Segment


@dataclass(frozen=True)
class Rejection:
    """A line (1-based in its chunk; 0: the file as a whole) or several documents that could not be read."""

    line: int
    reason: str
    documents: int = 1


@dataclass(frozen=True)
class Block:
    """Documents that follow one another in a chunk.

    `text` is source + text, UTF-8; `source_bytes` (n,) int64 how much of it is source; `category` a
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

    def source(self, number: int) -> str:
        """The segment of a document that is not trained on; empty where it has none."""
        end = int(self.source_bytes[number])
        begin = int(self.text_offsets[number])
        return bytes(self.text_data[begin : begin + end]).decode() if end else ""

    def document(self, number: int, file: str, lines_before: int = 0) -> Document:
        """One of the documents; `lines_before` is how many lines of `file` come before the block's chunk."""
        text, source = self.text[number].as_py(), self.source(number)
        segments = (Segment(source, False),) if source else ()
        place = Place(file, lines_before + int(self.line[number]))
        return Document((*segments, Segment(text[len(source) :])), str(self.category[number].as_py()), place)


def empty_block(rejected: list[Rejection], lines: int, size: int = 0) -> Block:
    """A block of no document, only of what could not be read."""
    nothing = np.zeros(0, np.int64)
    no_text = pa.array([], pa.string())
    return Block(no_text, nothing, no_text.dictionary_encode(), nothing, rejected, lines, size)
