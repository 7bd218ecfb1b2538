"""Documents that follow one another in a file, in Arrow arrays."""

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llmforge.corpus.document import Document, Place, Segment
from llmforge.corpus.spans import Spans


@dataclass(frozen=True)
class Rejection:
    """A line (1-based in its chunk; 0: the file as a whole) or several documents that could not be read."""

    line: int
    reason: str
    documents: int = 1


@dataclass(frozen=True)
class Block:
    """Documents that follow one another in a chunk.

    `text` has all segments of each document, UTF-8; `untrained` the bytes of those that are not trained; `category` a
    dictionary array of names; `line` (n,) int64, 1-based in the chunk. `lines` counts the lines of the block,
    blank ones too, and `size` the bytes on disk that it took. `conversations` has the messages of documents that are
    conversations, as JSON, and null for others; their `text` is what the messages say. `numbers`
    (n,) float64 are those of the fields that were asked for.
    """

    text: pa.StringArray
    untrained: Spans
    category: pa.DictionaryArray
    line: npt.NDArray[np.int64]
    rejected: list[Rejection] = field(default_factory=list)
    lines: int = 0
    size: int = 0
    conversations: pa.StringArray | None = None
    numbers: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)

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
        conversations = None if self.conversations is None else self.conversations.take(rows)
        return replace(
            self,
            text=text,
            untrained=self.untrained.take(order),
            category=category,
            line=self.line[order],
            conversations=conversations,
            numbers={name: values[order] for name, values in self.numbers.items()},
        )

    def head(self, n: int) -> "Block":
        """The first `n` documents, with their share of the bytes."""
        return replace(self.take(np.arange(n)), size=self.size * n // max(1, len(self)))

    def segments(self, number: int) -> tuple[Segment, ...]:
        """The segments of a document; trained ones that follow one another are one."""
        first, end = self.text_offsets[number : number + 2].tolist()
        data, found, at = self.text_data[first:end], [], 0
        for begin, stop in [*self.untrained.pairs(number), (len(data), len(data))]:
            for trained, part in ((True, data[at:begin]), (False, data[begin:stop])):
                if len(part):
                    found.append(Segment(bytes(part).decode(), trained))
            at = stop
        return tuple(found)

    def document(self, number: int, file: str, lines_before: int = 0) -> Document:
        """One of the documents; `lines_before` is how many lines of `file` come before the block's chunk."""
        place = Place(file, lines_before + int(self.line[number]))
        return Document(self.segments(number), str(self.category[number].as_py()), place)


def empty_block(rejected: list[Rejection], lines: int, size: int = 0) -> Block:
    """A block of no document, only of what could not be read."""
    nothing = np.zeros(0, np.int64)
    no_text = pa.array([], pa.string())
    return Block(no_text, Spans.none(0), no_text.dictionary_encode(), nothing, rejected, lines, size)
