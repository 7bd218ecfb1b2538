"""What became of every document: read == written + rejected, by category and reason, in documents and
tokens.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmforge.dataset.shards import Records


class Ledger:
    """Counts of a preparation. A line that is no document counts as one document of no tokens."""

    def __init__(self, categories: Sequence[str]) -> None:
        self.categories = list(categories)
        self._read: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._written: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._rejected: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))

    def read(self, records: Records) -> None:
        """Documents that were encoded."""
        for category, count in self._by_category(records).items():
            _add(self._read[category], count)

    def reject(self, reason: str, records: Records) -> None:
        """Documents among those read that are not written."""
        for category, count in self._by_category(records).items():
            _add(self._rejected[category][reason], count)

    def reject_named(self, reason: str, counts: Mapping[str, Sequence[int]]) -> None:
        """The same, counted already: (documents, tokens) by category."""
        for category, count in counts.items():
            _add(self._rejected[category][reason], count)

    def reject_unread(self, reason: str, category: str, documents: int) -> None:
        """Lines that are no documents: read and rejected at once."""
        _add(self._read[category], (documents, 0))
        _add(self._rejected[category][reason], (documents, 0))

    def write(self, counts: Mapping[str, Sequence[int]]) -> None:
        """(documents, tokens) by category that stand in a part."""
        for category, count in counts.items():
            _add(self._written[category], count)

    def check(self) -> None:
        """Whether nothing was lost; if not, llmforge is wrong."""
        for category in {*self._read, *self._written, *self._rejected}:
            rejected = [sum(count[i] for count in self._rejected[category].values()) for i in (0, 1)]
            accounted = [self._written[category][i] + rejected[i] for i in (0, 1)]
            assert self._read[category] == accounted, (
                f"{category}: read {self._read[category]}, found {accounted}"
            )

    def as_json(self) -> dict[str, Any]:
        """`read`, `written`, `rejected` and the same by category, each {"documents", "tokens"}, with
        reasons.
        """
        names = sorted({*self._read, *self._written})
        by_category = {
            name: {
                "read": _named(self._read[name]),
                "written": _named(self._written[name]),
                "rejected": _rejected(self._rejected[name]),
            }
            for name in names
        }
        reasons: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for name in names:
            for reason, count in self._rejected[name].items():
                _add(reasons[reason], count)
        return {
            "read": _named(_total(self._read.values())),
            "written": _named(_total(self._written.values())),
            "rejected": _rejected(reasons),
            "categories": by_category,
        }

    def _by_category(self, records: Records) -> dict[str, tuple[int, int]]:
        n = len(self.categories)
        documents = np.bincount(records["category"], minlength=n)
        tokens = np.bincount(records["category"], records["tokens"], n)
        return {
            self.categories[c]: (int(documents[c]), int(tokens[c]))
            for c in np.flatnonzero(documents).tolist()
        }


def _add(total: list[int], count: Sequence[int]) -> None:
    total[0] += int(count[0])
    total[1] += int(count[1])


def _total(counts: Any) -> list[int]:
    total = [0, 0]
    for count in counts:
        _add(total, count)
    return total


def _named(count: Sequence[int]) -> dict[str, int]:
    return {"documents": count[0], "tokens": count[1]}


def _rejected(reasons: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    return {
        **_named(_total(reasons.values())),
        "reasons": {reason: _named(reasons[reason]) for reason in sorted(reasons)},
    }
