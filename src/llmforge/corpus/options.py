"""How texts are read: which fields of a record, which part of a text file is a document, how long one may be."""

import re
from dataclasses import dataclass

from llmforge.errors import UsageError
from llmforge.options import Options, option

MAX_DOCUMENT_BYTES = 256 << 20
LARGEST_DOCUMENT_BYTES = 1 << 30  # Arrow's offsets of a block of texts have 31 bits
PANEL = "Texts"
CONVERSATION = "\0conversation"


def number_name(field: str) -> str:
    """What the column of the numbers of `field` is called in tables of texts."""
    return f"\0number {field}"


def parse_size(flag: str, text: str) -> int:
    """`1000000`, `256M` or `1G` (of 1,024 each) as bytes, from 1 to LARGEST_DOCUMENT_BYTES."""
    match = re.fullmatch(r"([0-9]{1,15})([KMG]?)(i?B)?", text.strip(), re.IGNORECASE)
    size = int(match[1]) << (10 * " KMG".index(match[2].upper() or " ")) if match else 0
    if not 1 <= size <= LARGEST_DOCUMENT_BYTES:
        raise UsageError(f"{flag} {text} is not a size up to 1G; write 1000000, 256M or 1G.")
    return size


@dataclass(frozen=True)
class ReadOptions(Options):
    """A field is a key of the record, or the keys to it, joined by dots (`meta.lang`).

    `text_field` replaces `target` (or `text`) where it is given; `source_field` and `category_field` may be empty:
    none. `lines`: a line of a text file is a document, rather than the file. A document, or the line of JSON it
    stands in, of more than `max_document_bytes` is rejected. `conversations`: records may be conversations of this layout
    (conversations.py), which have their messages in the field CONVERSATION, and `numbers` are fields of numbers that every
    record must have; both set by commands that can use them.
    """

    text_field: str | None = option(
        "Field of a record's text, such as meta.body (default: target, else text).", None, panel=PANEL
    )
    source_field: str = option(
        'Field of the text before it, which is not trained on; "" for none.', "source", panel=PANEL
    )
    category_field: str = option(
        'Field of the category; a document without it has that of its directory. "" for none.',
        "category",
        panel=PANEL,
    )
    lines: bool = option(
        "Each line of a .txt or .md file is a document, instead of the whole file.", False, panel=PANEL
    )
    max_document_bytes: int = option(
        "Reject documents and lines of JSON larger than this: 256M, 1G.",
        MAX_DOCUMENT_BYTES,
        panel=PANEL,
        parse=parse_size,
        metavar="SIZE",
        shown="256M",
    )
    conversations: str = ""
    numbers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_field == "":
            object.__setattr__(self, "text_field", None)
        for flag, name in (("--source-field", self.source_field), ("--category-field", self.category_field)):
            if self.text_field and name == self.text_field:
                raise UsageError(f"--text-field and {flag} both name '{name}'; name two different fields.")
        if self.source_field and self.source_field == self.category_field:
            raise UsageError(
                f"--source-field and --category-field both name '{self.source_field}'; name two different fields."
            )

    @property
    def texts(self) -> tuple[str, ...]:
        """The fields of the text; the first that a record has counts."""
        return (self.text_field,) if self.text_field else ("target", "text")

    @property
    def fields(self) -> list[str]:
        """All fields of texts that are read."""
        fields = [self.source_field, *self.texts, self.category_field]
        return [name for name in dict.fromkeys(fields) if name]

    @property
    def names(self) -> list[str]:
        """The columns of a table of what is read."""
        more = [CONVERSATION] * bool(self.conversations) + [number_name(name) for name in self.numbers]
        return self.fields + more

    @property
    def one_by_one(self) -> bool:
        """Whether records have to be looked at one by one: a table has columns of one type, and no lists."""
        return bool(self.conversations or self.numbers)

    @property
    def too_long(self) -> str:
        """Why a document that is too long is rejected."""
        return f"longer than --max-document-bytes {self.max_document_bytes}"
