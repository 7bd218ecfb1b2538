"""The documents that models are compared on."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmforge.corpus import Reader, ReadOptions, labeled
from llmforge.corpus.sources import own_label, printable
from llmforge.errors import UserError


@dataclass(frozen=True)
class Corpus:
    """The documents under one label. `characters` and `nbytes` (UTF-8) are totals."""

    label: str
    documents: list[str]

    @property
    def characters(self) -> int:
        return sum(map(len, self.documents))

    @property
    def nbytes(self) -> int:
        return sum(len(document.encode()) for document in self.documents)


def load_corpora(
    sources: Sequence[str],
    max_documents: int | None,
    max_characters: int | None,
    by_category: bool = False,
    reading: ReadOptions | None = None,
) -> list[Corpus]:
    """Reads `[LABEL=]PATH` sources; a label given twice is one corpus.

    Without a label, the `category` of each document is its label if `by_category`, and else the file's name.

    `max_documents` keeps the first documents of a label, `max_characters` the beginning of each document. Text of
    white space alone is no document here.
    """
    documents: dict[str, list[str]] = {}
    for label, path in labeled(sources):
        own = label or own_label(path)
        reader = Reader([path], reading or ReadOptions(), category=own)
        found = False
        for document in reader.documents():
            text = document.text[:max_characters]
            if not text.strip():
                continue
            found = True
            name = document.category if by_category and not label else own
            kept = documents.setdefault(name, [])
            if max_documents is None or len(kept) < max_documents:
                kept.append(text)
            elif not by_category or label:
                reader.finish()
                break
        if not found:
            raise UserError(f"--data {printable(path)}: no document with text was found.")
    return [Corpus(label, texts) for label, texts in documents.items()]
