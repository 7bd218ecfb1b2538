"""Cuts found from a histogram are those that sorting everything would give."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.dataset.planning import LAST_KEY, find_cuts
from llmforge.dataset.shuffle import derived_seed, keys, permutation


@given(
    weights=st.lists(st.integers(1, 50), min_size=1, max_size=200),
    bins=st.integers(1, 30),
    categories=st.integers(1, 3),
    pieces=st.integers(1, 4),
    crowded=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_cuts_are_those_of_a_full_sort(
    weights: list[int], bins: int, categories: int, pieces: int, crowded: bool
) -> None:
    weight = np.array(weights)
    category = np.arange(len(weight)) % categories
    key = keys(3, np.arange(len(weight)))
    if crowded:  # all in one bucket of the histogram, and some keys equal
        key = key % np.uint64(97)
    totals = np.bincount(category, weight, categories).astype(np.int64)
    targets = [np.rint(total * np.arange(1, bins) / bins).astype(np.int64) for total in totals]
    parts = np.array_split(np.arange(len(weight)), pieces)
    cuts = find_cuts(lambda: iter([(category[p], key[p], weight[p]) for p in parts]), targets)
    for c in range(categories):
        mine = np.flatnonzero(category == c)
        if len(mine) == 0:
            continue
        order = mine[np.argsort(key[mine], kind="stable")]
        middle = np.cumsum(weight[order]) - weight[order] / 2
        for target, cut in zip(targets[c].tolist(), cuts[c].tolist(), strict=True):
            below = order[key[order] < np.uint64(cut)]
            assert (middle[: len(below)] < target).all()
            rest = np.searchsorted(middle, target)
            assert len(below) == rest or key[order[len(below)]] == key[order[rest - 1]] or cut == LAST_KEY
        if len(np.unique(key)) == len(key):
            bin_of = np.searchsorted(cuts[c], key[mine], side="right")
            tokens = np.bincount(bin_of, weight[mine], bins)
            assert np.abs(tokens - totals[c] / bins).max() <= weight[mine].max() + 1


def test_keys_and_permutations_never_change() -> None:
    """Datasets and the order of training depend on them: other values would be another dataset."""
    expected = [0x134F7096918175CE, 0x07DC930B302278A8, 0x77648FFDA1BE19FE]
    assert keys(42, np.array([0, 1, 2**40])).tolist() == expected
    assert len(np.unique(keys(1, np.arange(100_000)))) == 100_000
    assert permutation(derived_seed("x", 1), 5).tolist() == [3, 0, 1, 2, 4]
    assert derived_seed("a", 1) != derived_seed("a", 2)


@given(
    largest=st.integers(10_000, 90_000),
    seed=st.integers(0, 1000),
    bins=st.integers(2, 12),
)
@settings(max_examples=40, deadline=None)
def test_small_documents_make_up_for_the_large_ones_of_other_categories(
    largest: int, seed: int, bins: int
) -> None:
    """Bins of the sum differ by 2 %, and no category is cut by more than half of its own bins elsewhere."""
    chance = np.random.default_rng(seed)
    sizes = [chance.integers(largest // 2, largest, 40), chance.integers(1, largest // 100, 20_000)]
    weight = np.concatenate(sizes)
    category = np.repeat([0, 1], [len(one) for one in sizes])
    key = chance.integers(0, 1 << 64, len(weight), dtype=np.uint64)
    totals = np.bincount(category, weight).astype(np.int64)
    targets = [np.rint(total * np.arange(1, bins + 1) / bins).astype(np.int64) for total in totals]
    tokens = {}
    for together in (False, True):
        cuts = find_cuts(lambda: iter([(category, key, weight)]), targets, together=together)
        bin_of = [np.searchsorted(cuts[c][:-1], key[category == c], side="right") for c in (0, 1)]
        tokens[together] = [np.bincount(bin_of[c], sizes[c], bins) for c in (0, 1)]
    assert np.array_equal(tokens[False][0], tokens[True][0])  # the largest are cut first
    whole = sum(tokens[True])
    assert np.abs(whole / whole.mean() - 1).max() < 0.02
    assert np.abs(tokens[True][1] / (totals[1] / bins) - 1).max() < 1.02


def test_cuts_of_categories_whose_documents_are_small_stay_where_they_are() -> None:
    chance = np.random.default_rng(1)
    weight, category = chance.integers(1, 500, 60_000), chance.integers(0, 3, 60_000)
    key = chance.integers(0, 1 << 64, len(weight), dtype=np.uint64)
    targets = [np.rint(t * np.arange(1, 8) / 7).astype(np.int64) for t in np.bincount(category, weight)]
    apart, joint = (
        find_cuts(lambda: iter([(category, key, weight)]), targets, together=together)
        for together in (False, True)
    )
    assert all(np.array_equal(*both) for both in zip(apart, joint, strict=True))
