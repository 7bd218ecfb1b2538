"""Splicing loses nothing, never overfills a row, and wastes little."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.dataset.packing import ONE, SPLICES, cut, splice

LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=60)


@given(LENGTHS, st.integers(2, 40), st.sampled_from([*SPLICES, ONE]))
@settings(max_examples=400, deadline=None)
def test_every_token_is_in_exactly_one_row(lengths: list[int], max_length: int, kind: str) -> None:
    rows = splice(np.array(lengths), max_length, kind)
    begins = np.append(0, rows.ends)
    if kind == ONE:
        assert rows.ends.tolist() == [*range(1, len(rows.length) + 1)]
    assert begins[-1] == len(rows.length)
    assert all(0 < rows.length[a:b].sum() <= max_length for a, b in pairwise(begins))
    for document, length in enumerate(lengths):
        mine = np.flatnonzero(rows.document == document)
        mine = mine[np.argsort(rows.start[mine])]
        ends = rows.start[mine] + rows.length[mine]
        assert rows.start[mine].tolist() == [0, *ends[:-1].tolist()]
        assert ends[-1] == length


@given(LENGTHS, st.integers(3, 40))
@settings(max_examples=200, deadline=None)
def test_a_long_document_leaves_no_piece_of_one_token(lengths: list[int], max_length: int) -> None:
    document, _, length = cut(np.array(lengths), max_length)
    assert all(length[i] > 1 or lengths[document[i]] == 1 for i in range(len(length)))
    assert length.max() <= max_length


@given(LENGTHS, st.integers(2, 40))
@settings(max_examples=200, deadline=None)
def test_best_fit_opens_a_row_only_when_none_has_room(lengths: list[int], max_length: int) -> None:
    """Best-fit decreasing never has two rows whose contents would fit into one: their sum exceeds the
    room.
    """
    rows = splice(np.array(lengths), max_length, "best-fit")
    sizes = np.sort(np.add.reduceat(rows.length, np.append(0, rows.ends[:-1])))
    if len(sizes) > 1:
        assert sizes[0] + sizes[1] > max_length


def test_best_fit_fills_99_percent_on_mixed_lengths() -> None:
    chance = np.random.default_rng(0)
    short, long = chance.lognormal(4.5, 0.7, 20_000), chance.lognormal(7.5, 1.2, 2_000)
    lengths = np.concatenate([short, long]).astype(np.int64) + 2
    chance.shuffle(lengths)
    for max_length in (1024, 4096):
        fill = {
            kind: lengths.sum() / len(splice(lengths, max_length, kind).ends) / max_length for kind in SPLICES
        }
        assert fill["best-fit"] > 0.99
        assert fill["concat"] > 0.999
        assert fill["best-fit"] > fill["greedy"]


@pytest.mark.parametrize("kind", SPLICES)
def test_greedy_and_concat_keep_the_order_and_none_depends_on_chance(kind: str) -> None:
    lengths = np.random.default_rng(1).integers(1, 50, 200)
    rows, again = splice(lengths, 32, kind), splice(lengths, 32, kind)
    assert (rows.document == again.document).all()
    assert (rows.ends == again.ends).all()
    if kind != "best-fit":
        assert (np.diff(rows.document) >= 0).all()


def test_one_document_per_row_loses_no_token() -> None:
    """A document longer than a row is cut in parts, of which none is one token alone."""
    rows = splice(np.array([5, 40, 33, 16]), 16, ONE)
    parts = list(zip(rows.document.tolist(), rows.start.tolist(), rows.length.tolist(), strict=True))
    cuts = [(0, 0, 5), (1, 0, 16), (1, 16, 16), (1, 32, 8), (2, 0, 16), (2, 16, 15), (2, 31, 2), (3, 0, 16)]
    assert parts == cuts
    assert rows.ends.tolist() == [*range(1, len(cuts) + 1)]
