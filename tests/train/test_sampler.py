"""The order of rows: no row twice before its category is through, exact shares, and the same from any state."""

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.backends.base import World
from llmforge.dataset.packed import CategoryRows, PackedDataset, RowSet
from llmforge.dataset.shuffle import derived_seed, permutation
from llmforge.errors import UserError
from llmforge.train.batches import MicroBatches
from llmforge.train.mixture import describe, whose_turn
from llmforge.train.sampler import Sampler

NAMES = "abcdef"
WEIGHTS = st.lists(st.floats(0.001, 1000), min_size=1, max_size=6)
# Rows of each category in each bin.
BINS = st.integers(1, 6).flatmap(
    lambda k: st.lists(st.lists(st.integers(0, 7), min_size=k, max_size=k), min_size=1, max_size=4).filter(
        lambda bins: all(sum(column) for column in zip(*bins, strict=True))
    )
)


class Rows(PackedDataset):
    """A dataset of so many rows of each category in each bin, without the files."""

    def __init__(self, bins: Sequence[Sequence[int]], fingerprint: str = "one") -> None:
        self.fingerprint, self.packed_by_category = fingerprint, True
        self.category = np.array([c for rows in bins for c, n in enumerate(rows) for _ in range(n)])
        self.bin = np.repeat(np.arange(len(bins)), [sum(rows) for rows in bins])
        self.bins = [self._set(np.flatnonzero(self.bin == b)) for b in range(len(bins))]
        self.categories = list(NAMES[: len(bins[0])])
        self._length, self.tokens = len(self.category), 10 * len(self.category)
        self.by_category = {
            name: CategoryRows(
                [self._set(np.flatnonzero((self.bin == b) & (self.category == c))) for b in range(len(bins))],
                10 * int((self.category == c).sum()),
            )
            for c, name in enumerate(self.categories)
        }

    @staticmethod
    def _set(rows: np.ndarray) -> RowSet:
        return RowSet(rows, np.ones(len(rows), np.int64))


def take(sampler: Sampler, rows: int, steps: int) -> list[list[int]]:
    return [sampler.next(rows).tolist() for _ in range(steps)]


@given(WEIGHTS, st.integers(1, 400))
@settings(max_examples=200, deadline=None)
def test_after_any_number_of_rows_every_category_has_its_share(weights: list[float], count: int) -> None:
    shares = np.array(weights) / sum(weights)
    turns = whose_turn(shares, np.zeros(len(weights), np.int64), count)
    taken = np.cumsum(turns[:, None] == np.arange(len(weights)), axis=0)
    wanted = shares * np.arange(1, count + 1)[:, None]
    assert np.abs(taken - wanted).max() < 1


@given(BINS, st.lists(st.floats(0.01, 100), min_size=6, max_size=6), st.integers(1, 9), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_a_category_is_read_whole_and_in_the_order_of_bins_before_any_row_comes_again(
    bins: list[list[int]], weights: list[float], rows: int, seed: int
) -> None:
    data = Rows(bins)
    names = data.categories
    sampler = Sampler(data, seed, dict(zip(names, weights, strict=False)))
    read = [row for step in take(sampler, rows, 40) for row in step]
    for c, name in enumerate(names):
        mine = [row for row in read if data.category[row] == c]
        size = len(data.by_category[name])
        for begin in range(0, len(mine), size):
            epoch = mine[begin : begin + size]
            assert len(set(epoch)) == len(epoch)
            assert sorted(data.bin[epoch]) == data.bin[epoch].tolist()
    counts = Counter(data.category[row] for row in read)
    total = sum(weights[: len(names)])
    assert all(abs(counts[c] - len(read) * weights[c] / total) < 1 for c in range(len(names)))


@given(BINS, st.booleans(), st.integers(1, 9), st.integers(0, 25), st.integers(0, 25), st.data())
@settings(max_examples=150, deadline=None)
def test_a_resume_reads_what_an_uninterrupted_run_reads(
    bins: list[list[int]], weighted: bool, rows: int, before: int, after: int, data: st.DataObject
) -> None:
    dataset, given_weights = Rows(bins), {}
    if weighted:
        weight = st.floats(0, 10)
        drawn = [data.draw(weight) for _ in dataset.categories]
        given_weights = dict(zip(dataset.categories, [*drawn[1:], 1.0], strict=True))
    whole = Sampler(dataset, 5, given_weights)
    take(whole, rows, before)
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = Sampler(Rows(bins), 5, given_weights)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert take(resumed, rows, after) == take(whole, rows, after)


@given(BINS, st.booleans(), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_any_number_of_ranks_reads_the_same_rows(
    bins: list[list[int]], weighted: bool, ranks: int, micro: int, micro_batches: int
) -> None:
    data = Rows(bins)
    weights = dict.fromkeys(data.categories, 1.0) if weighted else {}
    split = MicroBatches(micro, micro * micro_batches * ranks)
    alone = Sampler(data, 3, weights)
    samplers = [Sampler(Rows(bins), 3, weights) for _ in range(ranks)]
    for _ in range(8):
        step = alone.next(split.rows_per_step).tolist()
        read = [
            part
            for rank, sampler in enumerate(samplers)
            for part in split.of_rank(sampler.next(split.rows_per_step), World(rank, ranks, rank, ranks))
        ]
        assert sorted(np.concatenate(read).tolist()) == sorted(step)


@given(BINS, st.integers(1, 9), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_without_weights_an_epoch_is_every_row_once_bin_after_bin(
    bins: list[list[int]], rows: int, seed: int
) -> None:
    data = Rows(bins)
    sampler = Sampler(data, seed)
    for epoch in range(2):
        read: list[int] = []
        while len(read) < len(data):
            assert (sampler.epoch, sampler.sample) == (epoch, len(read))
            read += sampler.next(rows).tolist()
        parts, begin = [], 0
        for number, one in enumerate(bins):  # as it was written down when the first datasets were trained on
            parts.append(begin + permutation(derived_seed("one", seed, epoch, number), sum(one)))
            begin += sum(one)
        assert read == np.concatenate(parts).tolist()


def test_dataset_seed_and_epoch_change_the_order() -> None:
    bins, weights = [[20, 20], [20, 20]], {"a": 1.0, "b": 1.0}

    def read(fingerprint: str = "one", seed: int = 1, skip: int = 0) -> list[list[int]]:
        sampler = Sampler(Rows(bins, fingerprint), seed, weights)
        take(sampler, 80, skip)
        return take(sampler, 80, 1)

    assert read() == read()
    assert read() != read("other")
    assert read() != read(seed=2)
    assert read() != read(skip=1)


def test_weights_may_change_between_steps_and_the_change_is_part_of_the_state() -> None:
    data = Rows([[30, 30, 30], [30, 30, 30]])
    sampler = Sampler(data, 1, {"a": 3.0, "b": 1.0, "c": 0.0})
    assert len(sampler) == 120
    first = np.concatenate([sampler.next(10) for _ in range(4)])
    assert np.bincount(data.category[first], minlength=3).tolist() == [30, 10, 0]
    sampler.reweight({"a": 1.0, "b": 1.0, "c": 2.0})
    state = sampler.state_dict()
    second = np.concatenate([sampler.next(10) for _ in range(4)])
    assert np.bincount(data.category[second]).tolist() == [10, 10, 20]
    assert not set(first.tolist()) & set(second.tolist())
    other = Sampler(data, 1, {"a": 3.0, "b": 1.0, "c": 0.0})
    other.load_state_dict(state)
    assert np.concatenate([other.next(10) for _ in range(4)]).tolist() == second.tolist()


def test_an_old_state_without_weights_is_read() -> None:
    sampler = Sampler(Rows([[5, 5], [5, 5]]), 1)
    take(sampler, 4, 3)
    old = Sampler(Rows([[5, 5], [5, 5]]), 1)
    old.load_state_dict({"epoch": 0, "sample": 12})
    assert take(old, 4, 6) == take(sampler, 4, 6)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"a": 1.0}, "--mix has no weight for b; add b=0"),
        ({"a": 1.0, "b": 1.0, "x": 1.0}, "--mix names x, but the categories are a, b"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Sampler(Rows([[5, 5]]), 1, weights)


def test_a_category_without_rows_of_its_own_is_refused_only_where_it_is_asked_for() -> None:
    data = Rows([[5, 5]])
    data.categories.append("rare")
    with pytest.raises(UserError, match="--mix gives rare a weight, but it is too small to fill a row"):
        Sampler(data, 1, {"a": 1.0, "b": 1.0, "rare": 0.5})
    assert len(Sampler(data, 1, {"a": 1.0, "b": 1.0, "rare": 0.0})) == 10


def test_what_is_said_of_a_mixture() -> None:
    data = Rows([[30, 10]])
    sampler = Sampler(data, 1, {"a": 1.0, "b": 3.0})
    assert describe(sampler.weights, data, len(sampler)) == [
        "an epoch by --mix reads a 10 of its 30 rows (0.33 times), b 30 of its 10 rows (3.00 times)."
    ]
    data.by_category = {
        "a": CategoryRows(data.by_category["a"].bins, 900),
        "b": data.by_category["b"],
        "mixed": data.by_category["b"],
    }
    _, left_out, tokens = describe(sampler.weights, data, len(sampler))
    assert left_out.startswith("--mix leaves out the 10 rows that several categories share; mixed=W")
    assert tokens.endswith("of the tokens it is a 50.0%, b 50.0%.")
