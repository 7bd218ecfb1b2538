"""Which rows each step reads: a pure function of the dataset, the seed, the weights of categories and a small state."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llmforge.dataset.packed import PackedDataset, RowSet
from llmforge.dataset.shuffle import derived_seed, permutation
from llmforge.train.mixture import Int64, check_weights, whose_turn


class Stream:
    """Rows in the order of their bins, in each epoch shuffled again inside each; only one bin's order is kept."""

    def __init__(self, bins: Sequence[RowSet], fingerprint: str, seed: int, *category: str) -> None:
        self.bins, self.fingerprint, self.seed, self.category = bins, fingerprint, seed, category
        self._ends = np.cumsum([len(rows) for rows in bins])
        self._held: tuple[int, int] | None = None
        self._order: Int64

    def __len__(self) -> int:
        return int(self._ends[-1])

    def rows(self, epoch: int, begin: int, count: int) -> Int64:
        """(count,) int64: the numbers of the rows from `begin` on; they do not go beyond the end of the epoch."""
        parts, end = [np.zeros(0, np.int64)], begin + count
        while begin < end:
            number = int(np.searchsorted(self._ends, begin, side="right"))
            before = int(self._ends[number]) - len(self.bins[number])
            until = min(end, int(self._ends[number]))
            order = self._order_of(epoch, number)
            parts.append(self.bins[number].numbers(order[begin - before : until - before]))
            begin = until
        return np.concatenate(parts)

    def _order_of(self, epoch: int, number: int) -> Int64:
        if self._held != (epoch, number):
            seed = derived_seed(self.fingerprint, self.seed, epoch, number, *self.category)
            self._order = permutation(seed, len(self.bins[number]))
            self._held = epoch, number
        return self._order


@dataclass
class Progress:
    """How far a category has been read: `position` rows of its epoch `epoch`; `taken` since the weights were set."""

    epoch: int = 0
    position: int = 0
    taken: int = 0


class Sampler:
    """The numbers of the rows of each step.

    Without weights an epoch is all rows, bin after bin, shuffled inside each. With `weights` (category to weight, 0 to
    leave it out) each category is read by itself in that order, from its beginning again when it is through, and an
    epoch is as many rows as the categories have that are read. Shares are of rows, and less than one row off after
    any number of them. No call returns rows of two epochs. Ranks divide what `next` returns, so their number changes
    nothing. Raises `UserError` for weights that the dataset does not allow.
    """

    def __init__(self, data: PackedDataset, seed: int, weights: Mapping[str, float] | None = None) -> None:
        self.data, self.seed = data, seed
        self.epoch = self.sample = 0  # rows of the epoch that were read
        self.weights: dict[str, float] = {}
        self.progress: dict[str, Progress] = {}
        self._all = Stream(data.bins, data.fingerprint, seed)
        self._streams: dict[str, Stream] = {}
        self.reweight(weights or {})

    def __len__(self) -> int:
        """Rows of an epoch."""
        return sum(len(stream) for stream in self._streams.values()) if self.weights else len(self._all)

    @property
    def tokens(self) -> int:
        """Tokens of an epoch."""
        if not self.weights:
            return self.data.tokens
        found, total = self.data.by_category, sum(self.weights.values())
        per_row = sum(
            self.weights[name] / total * found[name].tokens / len(found[name]) for name in self._streams
        )
        return round(len(self) * per_row)

    def steps(self, rows_per_step: int) -> int:
        """The number of steps whose rows were read; no step has rows of two epochs."""
        return self.epoch * -(-len(self) // rows_per_step) + self.sample // rows_per_step

    def reweight(self, weights: Mapping[str, float]) -> None:
        """From the next row on other weights; shares count from there, and categories continue where they are."""
        if weights == self.weights:
            return
        if weights:
            check_weights(weights, self.data)
        self.weights = dict(weights)
        self._streams = {
            name: Stream(self.data.by_category[name].bins, self.data.fingerprint, self.seed, name)
            for name, weight in sorted(weights.items())
            if weight
        }
        for name in self._streams:
            self.progress.setdefault(name, Progress())
        for progress in self.progress.values():
            progress.taken = 0
        self._end_epoch()

    def next(self, rows: int) -> Int64:
        """int64 (n,): the next rows, at most `rows`, fewer at the end of an epoch."""
        count = min(rows, len(self) - self.sample)
        taken = self._by_weights(count) if self.weights else self._all.rows(self.epoch, self.sample, count)
        self.sample += count
        self._end_epoch()
        return taken

    def state_dict(self) -> dict[str, Any]:
        """JSON values: the epoch, its rows that were read, the weights, and the `Progress` of each category."""
        categories = {name: asdict(progress) for name, progress in self.progress.items()}
        return {
            "epoch": self.epoch,
            "sample": self.sample,
            "weights": dict(self.weights),
            "categories": categories,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`, of which all but `epoch` and `sample` may be missing: then it is that of a run without
        weights. LookupError, TypeError and ValueError say that it is damaged.
        """
        self.reweight(state.get("weights", {}))
        for name, values in state.get("categories", {}).items():
            progress = Progress(**values)
            if not 0 <= progress.position < len(self.data.by_category[name]):
                raise ValueError(f"position {progress.position} of {name}")
            self.progress[name] = progress
        self.epoch, self.sample = state["epoch"], state["sample"]
        self._end_epoch()

    def _end_epoch(self) -> None:
        if self.sample >= len(self):
            self.epoch, self.sample = self.epoch + 1, 0

    def _by_weights(self, count: int) -> Int64:
        shares = np.array([self.weights[name] for name in self._streams])
        taken = np.array([self.progress[name].taken for name in self._streams])
        turns = whose_turn(shares / shares.sum(), taken, count)
        rows = np.empty(count, np.int64)
        for number, name in enumerate(self._streams):
            mine = np.flatnonzero(turns == number)
            rows[mine] = self._advance(name, len(mine))
        return rows

    def _advance(self, name: str, count: int) -> Int64:
        """The next `count` rows of a category."""
        stream, progress, parts = self._streams[name], self.progress[name], [np.zeros(0, np.int64)]
        progress.taken += count
        while count:
            part = min(count, len(stream) - progress.position)
            parts.append(stream.rows(progress.epoch, progress.position, part))
            progress.position += part
            if progress.position == len(stream):
                progress.epoch, progress.position = progress.epoch + 1, 0
            count -= part
        return np.concatenate(parts)
