"""The words that pieces may not cross, and how they are counted."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.tokenizer import load
from llmforge.tokenizer.inside import Inside
from llmforge.tokenizer.words import Array, Codes, Counted, count_words, cutter

from . import makers

EAST_ASIAN = r"\p{Han}\p{Hiragana}\p{Katakana}ー"
JOINER = r"[\u200c\u200d]"
LETTER = rf"(?:(?![{EAST_ASIAN}])[\p{{L}}\p{{M}}])"
MARK = rf"[^\s\p{{L}}\p{{M}}\p{{N}}\p{{Cc}}▁\u200c\u200d{EAST_ASIAN}]"
# The rule of words.py as one pattern, read from the left.
RUN = rf"(?:{LETTER}+|{MARK}+)"
WORD = regex.compile(
    rf"(?:▁|{MARK})?[{EAST_ASIAN}]+|▁?{RUN}(?:{JOINER}+{RUN}?)*|(?:{JOINER}+{RUN}?)+|(?![{EAST_ASIAN}])\p{{N}}"
    rf"|▁|\s|\p{{Cc}}"
)
TEXTS = st.lists(
    st.text(st.sampled_from("ab天気カー。，「 ▁1٣〇⻊\n\t\u3000e\u0301🙂\x07\x85\u2028\u200c\u200d")),
    max_size=4,
)


def strings(codes: Codes, lengths: Array) -> list[str]:
    text = codes.tobytes().decode("utf-32-le")
    ends = np.cumsum(lengths).tolist()
    return [text[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]


def as_counter(counted: Counted) -> dict[str, int]:
    return dict(zip(strings(counted.codes, counted.lengths), counted.counts.tolist(), strict=True))


def by_spaces(texts: Sequence[str]) -> tuple[Codes, Array]:
    words = " ".join(texts).split()
    codes = np.frombuffer("".join(words).encode("utf-32-le"), dtype=np.uint32)
    return codes, np.array(list(map(len, words)), dtype=np.int64)


@settings(deadline=None)
@given(texts=TEXTS)
def test_words_are_those_of_the_pattern(sentencepiece_bpe: Path, texts: list[str]) -> None:
    expected = [word for text in texts for word in WORD.findall("▁" + text.replace(" ", "▁"))]
    assert strings(*cutter(Inside(load(sentencepiece_bpe)))(texts)) == expected


@settings(deadline=None)
@given(texts=TEXTS)
def test_words_of_one_script(sentencepiece_bpe: Path, byte_level: Path, texts: list[str]) -> None:
    expected = [word for text in texts for word in regex.findall(r"\p{Han}+", text)]
    assert strings(*cutter(Inside(load(sentencepiece_bpe)), "Han")(texts)) == expected
    words = strings(*cutter(Inside(load(byte_level)), "Han")(texts))
    assert len("".join(words)) == len("".join(expected).encode())


@settings(deadline=None)
@given(batches=st.lists(TEXTS, max_size=5))
def test_words_are_counted_over_batches(sentencepiece_bpe: Path, batches: list[list[str]]) -> None:
    cut = cutter(Inside(load(sentencepiece_bpe)))
    counted, metrics = count_words(batches, cut, seed=0)
    assert as_counter(counted) == Counter(word for texts in batches for word in strings(*cut(texts)))
    assert metrics["documents"] == sum(map(len, batches))


def test_words_are_thinned_to_a_bound_without_bias() -> None:
    texts = [[f"w{i}" for i in range(j, j + 100)] for j in range(0, 4000, 100)] + [["often"] * 500]
    counted, metrics = count_words(texts, by_spaces, seed=0, limit=1000)
    words = as_counter(counted)
    assert len(words) <= 1000
    assert metrics["thinned"] > 0
    assert words["often"] == 500
    assert 3000 < sum(words.values()) - 500 < 5000
    assert words == as_counter(count_words(texts, by_spaces, seed=0, limit=1000)[0])


def test_a_noncharacter_in_a_text_is_a_word_like_others(sentencepiece_bpe: Path, tmp_path: Path) -> None:
    from llmforge.tokenizer.learn import learn_pieces
    from llmforge.tokenizer.options import LearnPiecesOptions

    (tmp_path / "a.txt").write_text("\n".join(["天\uffff\U0010ffff天", *makers.CHINESE]))
    finished = learn_pieces(
        LearnPiecesOptions(
            tokenizer=sentencepiece_bpe, data=[tmp_path / "a.txt"], output=tmp_path / "p.jsonl", num_pieces=20
        )
    )
    assert finished.manifest.outputs["pieces"] == 20
