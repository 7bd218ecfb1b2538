"""Rules by which documents are kept: a number of theirs compared with another. Imports nothing that takes time."""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmforge.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

COMPARISONS: dict[str, Callable[[Any, float], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
RULE = re.compile(r"\s*(?P<field>[^<>=\s]+)\s*(?P<sign><=|>=|<|>)\s*(?P<number>[-+0-9.eE]+)\s*")


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

    def holds(self, values: "npt.NDArray[np.float64]") -> "npt.NDArray[np.bool_]":
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
