"""--long-conversations split: parts are conversations that fit a row, and nothing is lost."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.dataset.conversations import split_at_turns
from llmforge.dataset.options import PrepareOptions
from llmforge.dataset.packed import PackedDataset
from llmforge.errors import UsageError
from llmforge.steps import read_manifest
from llmforge.tokenizer import load
from llmforge.tokenizer.chat_template import ChatTemplate

from .conftest import write_jsonl
from .test_conversations import chat_tokenizer, turns

__all__ = ["chat_tokenizer"]
Message = dict[str, Any]


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """With or without a system message, calls of tools, and a last question without an answer."""
    text = st.text("ab ", min_size=1, max_size=9)
    found = [{"role": "system", "content": draw(text)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 7))):
        found += [{"role": "user", "content": draw(text)}]
        if draw(st.integers(0, 4)) == 0:
            found += [{"role": "assistant", "content": draw(text)}, {"role": "tool", "content": draw(text)}]
        found += [{"role": "assistant", "content": draw(text)}]
    return [*found, *([{"role": "user", "content": "?"}] if draw(st.booleans()) else [])]


def size(messages: list[Message]) -> int:
    return sum(1 + len(one["content"]) for one in messages)


@given(conversations(), st.integers(4, 60))
@settings(max_examples=300, deadline=None)
def test_parts_are_conversations_that_fit_and_lose_nothing(messages: list[Message], row: int) -> None:
    parts = split_at_turns(messages, lambda part: size(part) <= row)
    system = messages[:1] if messages[0]["role"] == "system" else []
    assert all(part[: len(system)] == system for part in parts)
    bodies = [part[len(system) :] for part in parts]
    assert [one for body in bodies for one in body] == messages[len(system) :]
    for body in bodies:
        roles = [one["role"] for one in body]
        assert roles[0] == "user"
        assert "assistant" in roles
        whole = [at for at in range(1, len(body)) if roles[at] == "user" and "assistant" in roles[at:]]
        assert size(system + body) <= row or not whole  # a single turn is not split
    for before, after in pairwise(bodies):
        first = next((at for at in range(1, len(after)) if after[at]["role"] == "user"), len(after))
        if all(one["role"] == "user" for one in after[first:]):
            first = len(after)
        assert size(system + before + after[:first]) > row  # as few parts as possible


@pytest.mark.slow
def test_each_part_is_rendered_by_itself_and_counted(
    llmforge: Any, chat_tokenizer: Path, tmp_path: Path
) -> None:
    chance = np.random.default_rng(0)
    words = ["cat", "garden", "1998", "mat"]

    def said(least: int, most: int) -> str:
        return " ".join(chance.choice(words, int(chance.integers(least, most))))

    long = [turns(*(said(2, 12) for _ in range(2 * n)), system="be short") for n in (9, 14)]
    large = turns("q", said(90, 100), "again", "yes")
    short = turns("q", "a")
    records = [{"messages": one} for one in (*long, large, short, long[0])]
    data, template = write_jsonl(tmp_path / "all.jsonl", records), ChatTemplate(load(chat_tokenizer))
    command = ["prepare-data", "--data", data, "--tokenizer", chat_tokenizer, "--max-length", 64]
    command += ["--bins", 1, "--format", "chat", "--long-conversations", "split"]
    done = llmforge(*command, "--output", tmp_path / "out", "--dedup", "exact")

    def parts_of(messages: list[Message]) -> list[list[Message]]:
        return split_at_turns(messages, lambda part: template.length(part) <= 64)

    expected = [part for one in (*long, large) for part in parts_of(one)]
    metrics = read_manifest(tmp_path / "out").metrics
    repeated = parts_of(long[0])
    again = len(repeated)
    longer = [part for part in (*expected, *repeated) if template.length(part) > 64]
    assert metrics["split"] == {
        "conversations": 4,
        "parts": len(expected) + again,
        "longer": len(longer),
    }
    assert large[:2] in longer
    assert "4 conversations longer than a row split into" in done.stdout
    # The fifth is a duplicate of the first, and its parts with it; parts of one are no duplicates of each other.
    assert metrics["ledger"]["rejected"]["documents"] == again
    assert metrics["ledger"]["written"]["documents"] == len(expected) + 1

    dataset = PackedDataset([tmp_path / "out"])
    found = []
    for row in dataset.rows(range(len(dataset))):
        both = np.stack([row.input_ids, row.labels])
        for ids, labels in np.split(both, np.cumsum(row.seq_lengths)[:-1], axis=1):
            found.append((ids.tolist(), (labels >= 0).tolist()))
    for part in [*expected, short]:
        ids, trained = template.training(part)
        trained[0] = False  # nothing predicts the first token
        if len(ids) <= 64:
            assert (ids.tolist(), trained.tolist()) in found
    assert all(len(ids) <= 64 for ids, _ in found)

    held = llmforge(*command, "--output", tmp_path / "held", "--holdout", "25%")
    assert held.returncode == 0
    lines = [json.loads(line) for file in (tmp_path / "held" / "holdout").iterdir() for line in file.open()]
    kept = read_manifest(tmp_path / "held").metrics["ledger"]["written"]["documents"]
    assert all("messages" in line for line in lines)
    assert kept + sum(len(parts_of(line["messages"])) for line in lines) == len(expected) + again + 1


@pytest.mark.parametrize("more", [{}, {"format": "chat", "train_on": "last"}])
def test_splitting_without_conversations_or_for_the_last_answer_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--long-conversations split"):
        PrepareOptions(
            data=[Path("a")],
            tokenizer=Path("t"),
            output=Path("o"),
            long_conversations="split",
            **more,
        )
