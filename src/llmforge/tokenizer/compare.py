"""`compare-tokenizers`: what tokenizers make of the same texts, as figures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from llmforge.corpus import Reader, ReadOptions
from llmforge.corpus import labeled as split_labels
from llmforge.corpus.sources import own_label
from llmforge.errors import UserError
from llmforge.hub import name_of, title
from llmforge.tokenizer.loading import load

BATCH = 1000


@dataclass(frozen=True)
class Row:
    """One tokenizer on the samples of one label.

    `compression` is tokens per character, Colossal-LLaMA's measure; `tokens_per_byte` counts UTF-8 bytes, which
    makes languages comparable; `mean_tokens` is the average length of a sample. Nothing is put before or
    after a sample.
    """

    tokenizer: str
    vocabulary: int
    label: str
    samples: int
    characters: int
    tokens: int
    compression: float
    tokens_per_byte: float
    mean_tokens: float


def compare(
    directories: Sequence[Path],
    corpora: Mapping[str, Sequence[Path]],
    max_samples: int | None = None,
    scheme: str | None = None,
    reading: ReadOptions | None = None,
) -> list[Row]:
    """Every tokenizer of `directories` on every label of `corpora`, in that order.

    A sample is a document; `max_samples` takes the first ones of each label; `scheme` says what
    rank files are where it cannot be told.
    """
    tokenizers = [load(directory, scheme) for directory in directories]
    names = short_names(directories)
    rows: dict[tuple[int, str], Row] = {}
    for label, paths in corpora.items():
        samples = characters = raw = 0
        tokens = [0] * len(tokenizers)
        reader = Reader(paths, reading or ReadOptions())
        for texts in _batches(chain.from_iterable(reader.texts()), max_samples):
            samples += len(texts)
            characters += sum(map(len, texts))
            raw += sum(len(text.encode()) for text in texts)
            for i, tokenizer in enumerate(tokenizers):
                tokens[i] += len(tokenizer.encode(texts)[0])
        if max_samples is not None:
            reader.finish()
        if not characters:
            raise UserError(f"{', '.join(map(str, paths))}: no text to compare on; check the path.")
        for i, tokenizer in enumerate(tokenizers):
            shares = (tokens[i] / characters, tokens[i] / raw, tokens[i] / samples)
            rows[i, label] = Row(names[i], tokenizer.size, label, samples, characters, tokens[i], *shares)
    return [rows[i, label] for i in range(len(tokenizers)) for label in corpora]


def labeled(words: Sequence[str]) -> dict[str, list[Path]]:
    """`[LABEL=]PATH` words as paths by label; without a label it is the name of the file or directory."""
    result: dict[str, list[Path]] = {}
    for label, path in split_labels(words):
        result.setdefault(label or own_label(path), []).append(path)
    return result


def short_names(directories: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many parts before it as tell all apart."""
    parts = [
        tuple((title(directory) if name_of(directory) else str(directory.resolve())).split("/"))
        for directory in directories
    ]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(set(parts)):
            return names
    raise AssertionError("different paths have different parts")


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as JSON objects."""
    return [asdict(row) for row in rows]


def _batches(texts: Iterator[str], limit: int | None) -> Iterator[list[str]]:
    texts = islice(texts, limit)
    while batch := list(islice(texts, BATCH)):
        yield batch
