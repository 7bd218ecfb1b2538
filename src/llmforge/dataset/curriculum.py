"""The order of documents by a number that each has."""

import numpy as np
import numpy.typing as npt

from llmforge.dataset.shuffle import Keys

DIGITS = 52  # of a number between 0 and 1; the rest of a key is chance, which tells equal numbers apart
EASY, HARD = "easy-to-hard", "hard-to-easy"


def ordered_keys(values: npt.NDArray[np.float64], chance: Keys, order: str) -> Keys:
    """Keys (n,) that rise with `values` (EASY), or fall (HARD); of equal values, as `chance`.

    A value x stands at x / (1 + |x|), so that values of the size of bits per byte are spread over the range of keys, in
    which bins are looked for.
    """
    spread = values / (1 + np.abs(values))
    share = (1 + (spread if order == EASY else -spread)) / 2
    steps = (share * float(1 << DIGITS)).astype(np.uint64)
    low = np.uint64(64 - DIGITS)
    keys: Keys = (np.minimum(steps, np.uint64((1 << DIGITS) - 1)) << low) | (chance >> np.uint64(DIGITS))
    return keys
