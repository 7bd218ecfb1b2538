"""Reproducible chance: keys that are a pure function of a seed and a number, the same in every version of
numpy.
"""

import numpy as np
import numpy.typing as npt
import xxhash

Keys = npt.NDArray[np.uint64]


def keys(seed: int, numbers: npt.NDArray[np.integer]) -> Keys:
    """Pseudo-random uint64 of each of `numbers`; distinct numbers get distinct keys.

    The finalizer of SplitMix64 (Steele, Lea and Flood 2014), a bijection of 64-bit integers.
    """
    x = numbers.astype(np.uint64) + np.uint64(seed & 0xFFFFFFFFFFFFFFFF)
    with np.errstate(over="ignore"):
        x = x * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def derived_seed(*parts: object) -> int:
    """A 64-bit seed from anything that prints the same each time."""
    return xxhash.xxh3_64_intdigest("\0".join(map(str, parts)).encode())


def permutation(seed: int, n: int) -> npt.NDArray[np.int64]:
    """A permutation of range(n)."""
    return np.argsort(keys(seed, np.arange(n)), kind="stable").astype(np.int64)
