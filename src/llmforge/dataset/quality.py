"""Which documents are not worth training on: the Gopher rules, a blocklist, leaked evaluation text. All are
optional.

Each document gets the first reason that applies, or none. Rules and thresholds of `gopher` are those of Rae
et al. 2021 (arXiv:2112.11446), appendix A.1.1. Where they speak of words, a character of Chinese, Japanese or
Korean is one; the rules on the length of words and on English stop words are left out where most words are
such characters.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmforge.dataset.words import CJK, ngram_codes, word_codes, words
from llmforge.errors import UserError
from llmforge.sizes import refuse_large

NGRAM = 13
CONTAMINATED, BLOCKED = "contains evaluation text", "blocklist"
STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
BULLETS = ("•", "‣", "▪", "◦", "-", "*", "●", "·")
TOP_NGRAMS = ((2, 0.20), (3, 0.18), (4, 0.16))
REPEATED_NGRAMS = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
_CJK = re.compile(f"[{CJK}]")
_REMEMBERED_WORDS = 1 << 20


@dataclass(frozen=True)
class QualitySettings:
    """`blocklist` are regular expressions; `contaminants` a .npy file of sorted n-gram hashes, or ""."""

    gopher: bool = False
    blocklist: tuple[str, ...] = ()
    contaminants: str = ""

    def __bool__(self) -> bool:
        return bool(self.gopher or self.blocklist or self.contaminants)


class Judge:
    """Says why a text is not wanted."""

    def __init__(self, settings: QualitySettings) -> None:
        self.gopher = settings.gopher
        self.blocked = [re.compile(pattern) for pattern in settings.blocklist]
        self.contaminants = np.load(settings.contaminants) if settings.contaminants else None
        self.known: dict[str, int] = {}

    def reason(self, text: str) -> str | None:
        """Why `text` is not wanted, or None."""
        if any(pattern.search(text) for pattern in self.blocked):
            return BLOCKED
        if self.contaminants is None and not self.gopher:
            return None
        found = words(text)
        if self.contaminants is not None:
            grams = ngram_codes(self._codes(found), NGRAM)
            at = np.searchsorted(self.contaminants, grams)
            if (self.contaminants[np.minimum(at, len(self.contaminants) - 1)] == grams).any():
                return CONTAMINATED
        return self._gopher(text, found) if self.gopher else None

    def _codes(self, found: list[str]) -> npt.NDArray[np.uint64]:
        if len(self.known) > _REMEMBERED_WORDS:
            self.known.clear()
        return word_codes(found, self.known)

    def _gopher(self, text: str, found: list[str]) -> str | None:
        failed = _quality_rule(text, found) or _repeated_lines(text) or self._repeated_words(found)
        return f"gopher: {failed}" if failed else None

    def _repeated_words(self, found: list[str]) -> str | None:
        lengths = np.array([len(word) for word in found], np.int64)
        total, codes = int(lengths.sum()), self._codes(found)
        for n, most in TOP_NGRAMS:
            grams, begins, counts = np.unique(ngram_codes(codes, n), return_index=True, return_counts=True)
            if len(grams):
                top = int(np.argmax(counts))
                size = int(lengths[begins[top] : begins[top] + n].sum())
                if counts[top] > 1 and counts[top] * size > most * total:
                    return f"one {n}-gram is over {most:.0%} of it"
        for n, most in REPEATED_NGRAMS:
            grams = ngram_codes(codes, n)
            _, inverse, counts = np.unique(grams, return_inverse=True, return_counts=True)
            first = np.zeros(len(grams), np.bool_)
            first[np.unique(inverse, return_index=True)[1]] = True
            repeated = np.flatnonzero((counts[inverse] > 1) & ~first)
            covered = np.zeros(len(found) + 1, np.int64)
            np.add.at(covered, repeated, 1)
            np.add.at(covered, repeated + n, -1)
            if int(lengths[np.cumsum(covered)[:-1] > 0].sum()) > most * total:
                return f"repeated {n}-grams are over {most:.0%} of it"
        return None


def _quality_rule(text: str, found: list[str]) -> str | None:
    if not 50 <= len(found) <= 100_000:
        return "under 50 or over 100,000 words"
    alphabetic = sum(any(map(str.isalpha, word)) for word in found)
    if alphabetic < 0.8 * len(found):
        return "under 80% of words have a letter"
    if text.count("#") + text.count("…") + text.count("...") > 0.1 * len(found):
        return "too many # or …"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if sum(line.startswith(BULLETS) for line in lines) > 0.9 * len(lines):
        return "over 90% of lines begin with a bullet"
    if sum(line.endswith(("…", "...")) for line in lines) > 0.3 * len(lines):
        return "over 30% of lines end with …"
    spaced = [word for word in found if not _CJK.match(word)]
    if len(spaced) < 0.5 * len(found):
        return None
    if not 3 <= sum(map(len, spaced)) / len(spaced) <= 10:
        return "mean word length under 3 or over 10"
    if len(STOP_WORDS & set(spaced)) < 2:
        return "under two stop words"
    return None


def _repeated_lines(text: str) -> str | None:
    for name, pieces in (("lines", text.splitlines()), ("paragraphs", text.split("\n\n"))):
        held = [piece.strip() for piece in pieces if piece.strip()]
        counts = Counter(held)
        again = len(held) - len(counts)
        if again > 0.3 * len(held):
            return f"over 30% of {name} are repeated"
        if sum(len(piece) * (n - 1) for piece, n in counts.items()) > 0.2 * sum(map(len, held)):
            return f"repeated {name} are over 20% of it"
    return None


def read_blocklist(path: Path) -> tuple[str, ...]:
    """The regular expressions of a file, one a line; blank lines and lines that begin with # do not count."""
    patterns = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            try:
                re.compile(line)
            except re.error as error:
                raise UserError(f"{path}, line {number}: not a regular expression ({error}).") from None
            patterns.append(line)
    if not patterns:
        raise UserError(f"{path} contains no pattern; write one regular expression per line.")
    return tuple(patterns)


def contaminant_codes(paths: Sequence[Path]) -> npt.NDArray[np.uint64]:
    """The sorted hashes of all 13-grams in evaluation files: .jsonl (every string in a record), or plain
    text.
    """
    known: dict[str, int] = {}
    grams = [
        ngram_codes(word_codes(words(text), known), NGRAM)
        for path in paths
        for text in _evaluation_texts(path)
    ]
    codes = np.unique(np.concatenate(grams)) if grams else np.zeros(0, np.uint64)
    if not len(codes):
        raise UserError(
            f"{', '.join(map(str, paths))}: no text of {NGRAM} words or more for --decontaminate."
        )
    return codes


def _evaluation_texts(path: Path) -> Iterator[str]:
    if not path.name.endswith(".jsonl"):
        yield _text(path)
        return
    for number, line in enumerate(_text(path).splitlines(), 1):
        if line.strip():
            try:
                yield from _strings(json.loads(line))
            except (ValueError, RecursionError):
                raise UserError(f"{path}, line {number}: broken JSON.") from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _text(path: Path) -> str:
    try:
        return refuse_large(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
