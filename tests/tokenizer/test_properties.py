"""Random pieces and texts: ids agree, pieces are reached, texts come back, and nothing moves."""

import json
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmforge.errors import UserError
from llmforge.tokenizer import Tokenizer, load
from llmforge.tokenizer.expand import expand, write_tokenizer
from llmforge.tokenizer.verify import parity, reachability, round_trip

# Few letters, so that pieces overlap, contain and repeat one another; some are in the sources, some are not.
LETTERS = "abthe 哈我们的🙂"
PIECES = st.lists(st.text(LETTERS, min_size=1, max_size=7), min_size=1, max_size=12)
TEXTS = st.lists(st.text(LETTERS + "xy\n,é", max_size=40), min_size=1, max_size=6)
SOURCES = ("sentencepiece_bpe", "sentencepiece_unigram", "byte_level")


@pytest.fixture(params=SOURCES, scope="session")
def source(request: pytest.FixtureRequest) -> Tokenizer:
    directory: Path = request.getfixturevalue(request.param)
    return load(directory)


def grown(source: Tokenizer, pieces: list[str]) -> tuple[Tokenizer, list[str], dict[str, str]]:
    """The expanded tokenizer as it is read back from its files, the cleaned pieces, and those left out."""
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "pieces.jsonl"
        file.write_text("".join(json.dumps({"piece": piece}) + "\n" for piece in pieces))
        try:
            expanded = expand(source, file)
        except UserError as error:
            assume("no new pieces" not in str(error) and "can be used" not in str(error))
            raise
        target = Path(work) / "target"
        target.mkdir()
        write_tokenizer(expanded.tokenizer.definition, target)
        return load(target), expanded.cleaned.pieces, expanded.additions.unreachable


@settings(max_examples=40, deadline=None)
@given(pieces=PIECES, texts=TEXTS)
def test_expansion_is_right(source: Tokenizer, pieces: list[str], texts: list[str]) -> None:
    after, wanted, left_out = grown(source, pieces)
    assert after.pieces()[: source.size] == source.pieces()
    texts = [*texts, "".join(texts), "".join(pieces), "".join(pieces) * 3]
    (ids, offsets), (old_ids, old_offsets) = after.encode(texts), source.encode(texts)
    rows = [ids[a:b] for a, b in pairwise(offsets.tolist())]
    old_rows = [old_ids[a:b] for a, b in pairwise(old_offsets.tolist())]

    same = parity(source, after, texts, rows)
    if source.definition.model is not None:
        assert same is not None
        assert (same["mismatches"], same["inherited"]) == (0, 0), same["examples"]
    back = round_trip(source, after, texts, rows, old_rows)
    assert back["failures"] == 0, back["examples"]
    reached = reachability(source, after, wanted, left_out)
    assert reached["source_lost"] == 0
    # Left out or cut by the pre-tokenizer, which no merge can help; the reason is given.
    for piece in reached["reasons"]:
        assert source.family != "sentencepiece-bpe", reached["reasons"][piece]
    for row, old in zip(rows, old_rows, strict=True):
        if not (row >= source.size).any():
            assert np.array_equal(row, old)


@settings(max_examples=40, deadline=None)
@given(pieces=PIECES)
def test_a_tokenizer_expanded_twice_keeps_both(source: Tokenizer, pieces: list[str]) -> None:
    once, wanted, left_out = grown(source, pieces)
    twice, _, _ = grown(once, ["们的哈", "zz的"])
    assert twice.pieces()[: once.size] == once.pieces()
    assert reachability(once, twice, wanted, left_out)["source_lost"] == 0
