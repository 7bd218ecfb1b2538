"""How texts are read: which fields of a record, which part of a text file is a document, how long one may be."""

import re
from dataclasses import dataclass

from llmforge.errors import UsageError

MAX_DOCUMENT_BYTES = 256 << 20
LARGEST_DOCUMENT_BYTES = 1 << 30  # Arrow's offsets of a block of texts have 31 bits


@dataclass(frozen=True)
class ReadOptions:
    """A field is a key of the record, or the keys to it, joined by dots (`meta.lang`).

    `text_field` replaces `target` (or `text`) where it is given; `source_field` and `category_field` may be empty:
    none. `lines`: a line of a text file is a document, rather than the file. A document, or the line of JSON it
    stands in, of more than `max_document_bytes` is rejected.
    """

    text_field: str | None = None
    source_field: str = "source"
    category_field: str = "category"
    lines: bool = False
    max_document_bytes: int = MAX_DOCUMENT_BYTES

    @property
    def texts(self) -> tuple[str, ...]:
        """The fields of the text; the first that a record has counts."""
        return (self.text_field,) if self.text_field else ("target", "text")

    @property
    def names(self) -> list[str]:
        """All fields that are read."""
        fields = [self.source_field, *self.texts, self.category_field]
        return [name for name in dict.fromkeys(fields) if name]

    @property
    def too_long(self) -> str:
        """Why a document that is too long is rejected."""
        return f"longer than --max-document-bytes {self.max_document_bytes}"


def read_options(
    text_field: str | None, source_field: str, category_field: str, lines: bool, max_document_bytes: str
) -> ReadOptions:
    """From the values of the flags; a `UsageError` for a field that is named twice, or a size that is none."""
    text = text_field or None
    for flag, name in (("--source-field", source_field), ("--category-field", category_field)):
        if text and name == text:
            raise UsageError(f"--text-field and {flag} both name '{name}'; name two fields.")
    if source_field and source_field == category_field:
        raise UsageError(f"--source-field and --category-field both name '{source_field}'; name two fields.")
    size = parse_size("--max-document-bytes", max_document_bytes)
    return ReadOptions(text, source_field, category_field, lines, size)


def parse_size(flag: str, text: str) -> int:
    """`1000000`, `256M` or `1G` (of 1,024 each) as bytes, from 1 to LARGEST_DOCUMENT_BYTES."""
    match = re.fullmatch(r"([0-9]{1,15})([KMG]?)(i?B)?", text.strip(), re.IGNORECASE)
    size = int(match[1]) << (10 * " KMG".index(match[2].upper() or " ")) if match else 0
    if not 1 <= size <= LARGEST_DOCUMENT_BYTES:
        raise UsageError(f"{flag} {text} is not a size up to 1G; write 1000000, 256M or 1G.")
    return size
