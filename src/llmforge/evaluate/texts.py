"""The documents that models are compared on."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmforge.errors import UserError

SUFFIXES = (".jsonl", ".txt")


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
    sources: Sequence[str], max_documents: int | None, max_characters: int | None, by_category: bool = False
) -> list[Corpus]:
    """Reads `[LABEL=]PATH` sources; a label given twice is one corpus.

    Without a label, the `category` of each line is its label if `by_category`, and else the file's name.

    `max_documents` keeps the first documents of a label, `max_characters` the beginning of each document.
    """
    documents: dict[str, list[str]] = {}
    for source in sources:
        label, equals, path = source.partition("=")
        if not equals:
            label, path = Path(source).name.split(".")[0], source
        found = False
        for category, text in _read(Path(path)):
            own = category if by_category and category and not equals else label
            documents.setdefault(own, []).append(text[:max_characters])
            found = True
        if not found:
            raise UserError(f"--data {label}: there is no document with text in it.")
    return [Corpus(label, texts[:max_documents]) for label, texts in documents.items()]


def _read(path: Path) -> Iterator[tuple[str | None, str]]:
    """(category, text) of every document; text files have no category."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.suffix in SUFFIXES]
        if not files:
            raise UserError(f"--data {path} holds no {' or '.join(SUFFIXES)} file.")
        for inner in files:
            yield from _read(inner)
    elif not path.is_file():
        raise UserError(f"--data {path} does not exist; give a .jsonl or .txt file, or a directory of them.")
    elif path.suffix == ".txt":
        yield None, _decoded(path, path.read_bytes(), None)
    elif path.suffix == ".jsonl":
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                category, text = _text_of(path, line, number) if line.strip() else (None, "")
                if text.strip():
                    yield category, text
    else:
        raise UserError(f"--data {path} is not a .jsonl or .txt file.")


def _text_of(path: Path, line: bytes, number: int) -> tuple[str | None, str]:
    """(category, text) of a line of prepare-data's input; the text is `source` + `target`, or `text`."""
    try:
        record = json.loads(_decoded(path, line, number))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number}: not JSON ({error.msg}); mend or remove the line.") from None
    fields = record if isinstance(record, dict) else {}
    source, target = fields.get("source") or "", fields.get("target", fields.get("text"))
    if not isinstance(source, str) or not isinstance(target, str):
        raise UserError(f'{path}, line {number}: needs an object with a string "target" or "text".')
    category = fields.get("category")
    return category if isinstance(category, str) else None, source + target


def _decoded(path: Path, raw: bytes, number: int | None) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        where = f", line {number}" if number else ""
        raise UserError(f"{path}{where}: not UTF-8; convert the file.") from None
