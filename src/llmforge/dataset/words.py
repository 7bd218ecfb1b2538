"""Words as the quality rules count them, in any script: a character of Chinese, Japanese or Korean is a
word.
"""

import re

import numpy as np
import numpy.typing as npt
import xxhash

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\U00020000-\U0003ffff"
_WORD = re.compile(f"[{CJK}]|[^\\W{CJK}]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """The words of `text` in small letters; punctuation and spaces are none."""
    return _WORD.findall(text.lower())


def word_codes(found: list[str], known: dict[str, int]) -> npt.NDArray[np.uint64]:
    """A uint64 hash of each word; `known` remembers those seen."""
    codes = []
    for word in found:
        code = known.get(word)
        if code is None:
            code = known[word] = xxhash.xxh3_64_intdigest(word.encode())
        codes.append(code)
    return np.array(codes, np.uint64)


def ngram_codes(codes: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.uint64]:
    """A hash of every `n` words that follow one another; none where there are fewer."""
    if len(codes) < n:
        return np.zeros(0, np.uint64)
    count = len(codes) - n + 1
    total = np.zeros(count, np.uint64)
    for k in range(n):
        total = total * _BASE + codes[k : k + count]
    return total ^ (total >> np.uint64(29))
