"""Reading whole inputs, document by document or in batches of texts, with the account of what was read."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmforge.console import warn
from llmforge.corpus.block import Block
from llmforge.corpus.chunk import Chunk
from llmforge.corpus.document import Document
from llmforge.corpus.options import ReadOptions
from llmforge.corpus.sources import find_chunks, printable
from llmforge.errors import UserError

BLOCK_BYTES, BATCH_CHARACTERS = 8 << 20, 1 << 20
MAX_REJECTED = 0.01
# A `source` is taken for the name of a corpus where few short ones stand before many documents.
NAMES_DOCUMENTS, NAMES_SHARE, NAME_BYTES = 10, 0.2, 40
NAMES_SEEN, NAMES_SEEN_AT_ONCE = 1000, 200


def read_blocks(chunk: Chunk, options: ReadOptions, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The documents of `chunk` in order, some `block_bytes` of text at a time."""
    from llmforge.corpus.formats import format_of

    try:
        yield from format_of(chunk.kind).blocks(chunk, options, block_bytes)
    except OSError as error:
        raise UserError(f"{chunk.name} cannot be read ({error.strerror or error}).") from None


@dataclass
class Account:
    """What became of every document that was read: `rejected` by reason, and `first`, where and why the first was."""

    read: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    first: str = ""

    def as_json(self) -> dict[str, Any]:
        """`read`, `used` and `rejected` in documents; a line that is no document counts as one."""
        lost = self.rejected.total()
        return {
            "read": self.read,
            "used": self.read - lost,
            "rejected": {"documents": lost, "reasons": dict(self.rejected)},
        }


class Reader:
    """The documents of `inputs`, in order. What cannot be read is counted in `account`.

    Where all of it was read, or after `finish`, more than `MAX_REJECTED` unusable lines are a `UserError`, and fewer are
    said; `max_rejected` is another share, of a command that has --max-rejected. `category` is that of documents that name
    none, instead of their directory's.
    """

    def __init__(
        self,
        inputs: Sequence[Path],
        options: ReadOptions,
        category: str | None = None,
        max_rejected: float | None = None,
    ) -> None:
        self.inputs, self.options, self.max_rejected = list(inputs), options, max_rejected
        self.chunks = find_chunks(self.inputs, options.lines)
        if category is not None:
            self.chunks = [replace(chunk, category=category) for chunk in self.chunks]
        self.size = sum(chunk.size for chunk in self.chunks)
        self.account = Account()
        self._names = SourceNames(options)

    def blocks(self) -> Iterator[tuple[Chunk, int, Block]]:
        """(chunk, lines of its file before it, block) of all that is read."""
        before: Counter[str] = Counter()
        for chunk in self.chunks:
            lines = 0
            for block in read_blocks(chunk, self.options):
                self._count(chunk, before[chunk.path], block)
                lines += block.lines
                if len(block):
                    yield chunk, before[chunk.path], block
            before[chunk.path] += lines
        self.finish()

    def texts(self, advance: Callable[[float], None] = lambda _: None) -> Iterator[list[str]]:
        """The texts in lists of some megabytes; `advance` is told the bytes on disk of each."""
        for _, _, block in self.blocks():
            advance(float(block.size))
            yield block.text.to_pylist()

    def batches(self, max_characters: int) -> Iterator[list[str]]:
        """The texts in lists of about a million characters, `max_characters` in all."""
        held: list[str] = []
        size = total = 0
        for texts in self.texts():
            for text in texts:
                held.append(text)
                size, total = size + len(text), total + len(text)
                if size >= BATCH_CHARACTERS or total >= max_characters:
                    yield held
                    held, size = [], 0
                if total >= max_characters:
                    self.finish()
                    return
        if held:
            yield held

    def documents(self) -> Iterator[Document]:
        """The documents, one by one."""
        for chunk, before, block in self.blocks():
            for number in range(len(block)):
                yield block.document(number, chunk.name, before)

    def finish(self) -> None:
        """Says, or refuses, what could not be used of what was read so far."""
        account = self.account
        where = ", ".join(map(printable, self.inputs))
        if not account.read:
            raise UserError(f"{where}: no documents found.")
        lost = account.rejected.total()
        share = MAX_REJECTED if self.max_rejected is None else self.max_rejected
        if lost > share * account.read:
            more = "" if self.max_rejected is None else ", or allow more by --max-rejected"
            texts = not self.options.conversations and ": no '" in account.first
            field = " If their text is in another field, give --text-field." if texts else ""
            raise UserError(
                f"{lost:,} of {account.read:,} documents cannot be used, more than {100 * share:.4g} %; the first is "
                f"{account.first}. Correct or remove such lines{more}.{field}"
            )
        if lost:
            warn(f"{lost:,} of {account.read:,} documents cannot be used; the first is {account.first}")
        self._names.say()

    def reject(self, chunk: Chunk, line: int, reason: str, documents: int = 1) -> None:
        """Counts documents that were read and cannot be used; `line` (0: none) is that of the file of `chunk`."""
        self.account.rejected[reason] += documents
        if not self.account.first:
            self.account.first = f"{chunk.name}{f', line {line}' if line else ''}: {reason}"

    def _count(self, chunk: Chunk, before: int, block: Block) -> None:
        self.account.read += len(block)
        for one in block.rejected:
            self.account.read += one.documents
            self.reject(chunk, before + one.line if one.line else 0, one.reason, one.documents)
        self._names.see(block)


class SourceNames:
    """Whether `source` looks like the name of where documents come from, rather than text before them."""

    def __init__(self, options: ReadOptions) -> None:
        self.field = options.source_field
        self.values: Counter[str] = Counter()  # how many documents each source stands before
        self.said = False

    def see(self, block: Block) -> None:
        """Looks at the first documents of a block; one in which a source is long says nothing about names."""
        first = (block.untrained.begins == 0).nonzero()[0][:NAMES_SEEN_AT_ONCE]
        if (block.untrained.ends[first] <= NAME_BYTES).all():
            numbers = block.untrained.documents[first].tolist()
            self.add(Counter(block.segments(number)[0].text for number in numbers))

    def add(self, values: Mapping[str, int]) -> None:
        """Takes in the `values` of other documents."""
        if self.values.total() < NAMES_SEEN:
            self.values.update(values)

    def remark(self) -> str:
        """The sentence, or "" where nothing is odd."""
        documents = self.values.total()
        if documents < NAMES_DOCUMENTS:
            return ""
        if len(self.values) > max(1, NAMES_SHARE * documents):
            return ""
        name = self.values.most_common(1)[0][0]
        different = f"{len(self.values):,} different values" if len(self.values) > 1 else "one value"
        return (
            f"'{self.field}' has {different} in {documents:,} documents, such as '{name}', which looks "
            "like the name of a corpus, but it is put before the text of every document; if it is a name, "
            'give --source-field "".'
        )

    def say(self) -> None:
        """Says `remark`, once."""
        remark = self.remark()
        if remark and not self.said:
            warn(remark)
            self.said = True
