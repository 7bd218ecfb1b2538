"""What a number of each document decides: whether it is kept, and its place in the order of a dataset."""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmforge.dataset.shuffle import Keys
from llmforge.errors import UsageError

COMPARISONS: dict[str, Callable[[Any, float], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
RULE = re.compile(r"\s*(?P<field>[^<>=\s]+)\s*(?P<sign><=|>=|<|>)\s*(?P<number>[-+0-9.eE]+)\s*")
DIGITS = 52  # of a number between 0 and 1; the rest of a key is chance, which tells equal numbers apart
EASY, HARD = "easy-to-hard", "hard-to-easy"


@dataclass(frozen=True)
class Rule:
    """`field` compared with `number` by `sign`, a key of COMPARISONS."""

    field: str
    sign: str
    number: float

    @property
    def reason(self) -> str:
        """Why a document is dropped for which the rule does not hold."""
        return f"not {self.field}{self.sign}{self.number:g}"

    def holds(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """(n,) bool for `values` (n,) of the field."""
        found: npt.NDArray[np.bool_] = COMPARISONS[self.sign](values, self.number)
        return found


def parse_rules(flag: str, items: Sequence[str]) -> tuple[Rule, ...]:
    """`bits_per_byte<1.2` as a rule, each of `items`; a `UsageError` for anything else."""
    rules = []
    for item in items:
        match = RULE.fullmatch(item)
        try:
            assert match
            rules.append(Rule(match["field"], match["sign"], float(match["number"])))
        except (AssertionError, ValueError):
            raise UsageError(
                f"{flag} {item} is not FIELD<NUMBER; write bits_per_byte<1.2 (or >, <=, >=)."
            ) from None
    return tuple(rules)


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
