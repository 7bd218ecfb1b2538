"""The words of a corpus, which pieces may not cross, and how often each occurs.

Words are kept as flat arrays of code points and not as strings: a batch of texts is cut, and its equal words are
found, without a Python loop over either.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import regex

from llmforge import console
from llmforge.errors import UserError
from llmforge.tokenizer.formats.sentencepiece_model import SPACE
from llmforge.tokenizer.inside import Inside, words_of

MAX_WORDS = 6_000_000
# Words of a sentencepiece tokenizer are cut as its own trainer cuts: a space goes with what is behind it; kanji and
# kana with one another and with no other letters; a digit, a line break or a control character by itself. One mark may
# begin an East Asian word. Joiners stand within words (Persian, Sinhala) and within emoji.
EAST_ASIAN, LETTER, MARK, SPACE_MARK, SINGLE, JOINER = range(6)
CLASSES = {
    LETTER: r"[\p{L}\p{M}]",
    SINGLE: r"[\s\p{N}\p{Cc}]",
    EAST_ASIAN: r"[\p{Han}\p{Hiragana}\p{Katakana}ー]",
    SPACE_MARK: SPACE,
    JOINER: r"[\u200c\u200d]",
}
JOINS = np.eye(6, dtype=bool)  # whether a character of one class continues with one of another
JOINS[SPACE_MARK] = [True, True, True, False, False, False]
JOINS[SINGLE, SINGLE] = False
JOINS[JOINER, [LETTER, MARK]] = JOINS[[LETTER, MARK], JOINER] = True

Codes = npt.NDArray[np.uint32]
Array = npt.NDArray[np.int64]
# Texts to the code points of their words, one word after another, and the length of each word.
Cut = Callable[[Sequence[str]], tuple[Codes, Array]]


@dataclass(frozen=True)
class Counted:
    """Different words: flat `codes` (uint32), and for each word its `lengths`, `counts` (int64) and `hashes` (uint64)."""

    codes: Codes
    lengths: Array
    counts: Array
    hashes: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.lengths)

    def offsets(self) -> Array:
        """Where each word begins in `codes`, and the end (words + 1)."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def taken(self, which: Array) -> "Counted":
        """The words with the numbers `which`, in that order."""
        lengths = self.lengths[which]
        behind = np.cumsum(lengths)
        index = np.repeat(self.offsets()[which] - behind + lengths, lengths) + np.arange(lengths.sum())
        return Counted(self.codes[index], lengths, self.counts[which], self.hashes[which])


def count_words(
    batches: Iterable[Sequence[str]], cut: Cut, seed: int, limit: int = MAX_WORDS
) -> tuple[Counted, dict[str, Any]]:
    """The words of batches of texts with their frequencies, in bounded memory.

    When more than `limit` different words are held (as many again may wait to be merged), each of the rarer half is dropped with probability one
    half and else counted twice: the expected frequency of every pair stays what it is in the whole corpus.
    """
    counted = merged([])
    waiting: list[Counted] = []
    chance = np.random.default_rng(seed)
    read = characters = thinned = 0
    for texts in chain(batches, [None]):
        if texts is not None:
            read += len(texts)
            characters += sum(map(len, texts))
            codes, lengths = cut(texts)
            words = Counted(codes, lengths, np.ones_like(lengths), hashes(codes, lengths))
            waiting.append(merged([words]))
            # Not after each batch, so that the time of merging stays in proportion to the corpus.
            if sum(map(len, waiting)) < len(counted):
                continue
        counted, waiting = merged([counted, *waiting]), []
        while len(counted) > limit:
            thinned += 1
            counted = _thinned(counted, chance)
    if thinned:
        console.warn(
            f"more than {limit:,} different words: half of the rare ones were dropped at random, {thinned} times."
        )
    return counted, {
        "documents": read,
        "characters_read": characters,
        "words": len(counted),
        "thinned": thinned,
    }


def merged(parts: Sequence[Counted]) -> Counted:
    """The different words of `parts`, frequencies added."""
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return Counted(none.astype(np.uint32), none, none, none.astype(np.uint64))
    both = Counted(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in Counted.__annotations__)
    )
    order = np.argsort(both.hashes)
    ranked = both.hashes[order]
    first = np.flatnonzero(np.concatenate([[len(ranked) > 0], ranked[1:] != ranked[:-1]]))
    counts = np.add.reduceat(both.counts[order], first) if len(first) else both.counts
    one = both.taken(order[first])
    return replace(one, counts=counts)


def hashes(codes: Codes, lengths: Array) -> npt.NDArray[np.uint64]:
    """64 bits for each word. Two of three million words share them once in four million corpora: counted as one then."""
    if not len(lengths):
        return np.zeros(0, dtype=np.uint64)
    starts = np.cumsum(lengths) - lengths
    places = _mixed(np.arange(lengths.max()))
    each = _mixed(codes) * places[np.arange(len(codes)) - np.repeat(starts, lengths)]
    return np.add.reduceat(each, starts)


def _mixed(values: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Each value as 64 bits that look random (Steele et al., SplitMix, doi 10.1145/2660193.2660195)."""
    mixed = (values.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _thinned(counted: Counted, chance: np.random.Generator) -> Counted:
    bound = np.partition(counted.counts, len(counted) // 2)[len(counted) // 2]
    often = counted.counts > bound
    kept = counted.taken(np.flatnonzero(often | (chance.random(len(counted)) < 0.5)))
    return replace(kept, counts=np.where(kept.counts > bound, kept.counts, 2 * kept.counts))


def cutter(inside: Inside, script: str | None = None) -> Cut:
    """How texts are cut into words, spelled as the vocabulary spells them; `script` keeps words of one script.

    An added token that cuts texts is in no word.
    """
    wanted = None if script is None else script_pattern(script)
    if inside.byte_level:
        return _byte_level_cutter(inside, wanted)
    classes = _classes(tuple((CLASSES if wanted is None else {LETTER: wanted.pattern}).items()))

    def cut(texts: Sequence[str]) -> tuple[Codes, Array]:
        texts = [(inside.prefix + inside.fold(text)).replace(" ", SPACE) for text in texts]
        if inside.added:
            texts = [part for text in texts for part in inside.added.split(text)]
        texts = [text for text in texts if text]
        codes = _codes("".join(texts))
        beginning = np.zeros(len(codes) + 1, dtype=bool)
        beginning[np.cumsum([0, *map(len, texts)])] = True
        kinds = classes[codes]
        joined = np.zeros(len(codes) + 1, dtype=bool)
        joined[1:-1] = JOINS[kinds[:-1], kinds[1:]]
        joined &= ~beginning
        if wanted is None:  # a mark that begins a word and is followed by an East Asian letter goes with it
            alone = (kinds[:-1] == MARK) & ~joined[:-2]
            joined[1:-1] |= alone & (kinds[1:] == EAST_ASIAN) & ~beginning[1:-1]
            kept = slice(None)
        else:
            kept = kinds == LETTER
        starts = np.flatnonzero(~joined[:-1][kept])
        codes = codes[kept]
        return codes, np.diff(starts, append=len(codes))

    return cut


def _byte_level_cutter(inside: Inside, wanted: Any) -> Cut:
    # A run of one script begins no text, so no space is put before it.
    backend: Any = inside if wanted else inside.tokenizer.backend
    normalizer, pre_tokenizer = backend.normalizer, backend.pre_tokenizer

    def cut(texts: Sequence[str]) -> tuple[Codes, Array]:
        words: list[str] = []
        for text in texts:
            for part in inside.added.split(text) if inside.added else [text]:
                if wanted:
                    for run in wanted.findall(part):
                        words += cut_run(run)
                else:
                    words += cut_part(part)
        return _codes("".join(words)), np.array(list(map(len, words)), dtype=np.int64)

    def cut_part(part: str) -> list[str]:
        return words_of(pre_tokenizer, normalizer.normalize_str(part) if normalizer else part)

    cut_run = lru_cache(maxsize=100_000)(cut_part)  # a run is a word or a sentence: many come again
    return cut


def script_pattern(script: str) -> Any:
    """The pattern of words in one Unicode script."""
    try:
        return regex.compile(rf"\p{{Script={script}}}+")
    except regex.error:
        raise UserError(
            f"--script {script}: not a Unicode script; use a name such as Han, Hangul, Cyrillic or Arabic."
        ) from None


@lru_cache(maxsize=4)
def _classes(patterns: tuple[tuple[int, str], ...]) -> npt.NDArray[np.uint8]:
    """The class of each code point: the last of `patterns` that matches it, else MARK."""
    every = "".join(map(chr, range(0x110000)))
    classes = np.full(len(every), MARK, dtype=np.uint8)
    for kind, pattern in patterns:
        for match in regex.finditer(f"(?:{pattern})+", every):
            classes[match.start() : match.end()] = kind
    return classes


def _codes(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
