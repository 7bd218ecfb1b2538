"""Scored documents: what is kept, and their order over the bins."""

import json
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmforge.dataset.curriculum import EASY, HARD, ordered_keys
from llmforge.dataset.packed import PackedDataset
from llmforge.dataset.rules import parse_rules
from llmforge.errors import UsageError
from llmforge.tokenizer import load

from .conftest import write_jsonl

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)
WORDS = ["cat", "sat", "mat", "birds", "rings", "公园", "散步"]


@given(st.lists(NUMBERS, min_size=2, max_size=30))
def test_keys_rise_with_numbers_or_fall(values: list[float]) -> None:
    numbers = np.array(values)
    chance = np.arange(len(values), dtype=np.uint64) << np.uint64(50)
    easy, hard = (ordered_keys(numbers, chance, order) for order in (EASY, HARD))
    for i, j in zip(*np.triu_indices(len(values), 1), strict=True):
        a, b = numbers[i], numbers[j]
        if abs(a - b) > 1e-3 * max(1.0, abs(a), abs(b)) ** 2:
            assert (easy[i] < easy[j]) == (a < b)
            assert (hard[i] < hard[j]) == (a > b)


def test_equal_numbers_are_ordered_by_chance() -> None:
    chance = np.array([3, 1, 2], np.uint64) << np.uint64(60)
    assert np.argsort(ordered_keys(np.full(3, 1.5), chance, EASY)).tolist() == [1, 2, 0]


@pytest.mark.parametrize("text", ["bits_per_byte", "<1", "a<b", "a=1", "a<1.2.3", "a<<1"])
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write bits_per_byte"):
        parse_rules("--keep", [text])


def records(count: int = 60) -> list[dict[str, Any]]:
    """Documents whose number is told by their words."""
    return [
        {"text": " ".join(WORDS[(i + k) % 7] for k in range(12)), "meta": {"score": (i * 37) % count / 10}}
        for i in range(count)
    ]


def texts_by_bin(dataset: Path, tokenizer: Path) -> list[list[str]]:
    """The documents of each part."""
    source = load(tokenizer)
    found = []
    for part in sorted((dataset / "arrow").iterdir()):
        data = PackedDataset([part])
        rows = data.rows(range(len(data)))
        documents = chain.from_iterable(np.split(r.input_ids, np.cumsum(r.seq_lengths)[:-1]) for r in rows)
        found.append([source.decode([i for i in ids if i not in source.special_ids]) for ids in documents])
    return found


@pytest.mark.parametrize("order", [EASY, HARD])
def test_bins_are_stages_of_a_curriculum(llmforge: Any, byte_level: Path, tmp_path: Path, order: str) -> None:
    scored = [{**one, "text": f"{one['text']} {i}"} for i, one in enumerate(records())]
    data = write_jsonl(tmp_path / "scored.jsonl", scored)
    llmforge(
        *("prepare-data", "--data", data, "--output", tmp_path / "out", "--tokenizer", byte_level),
        *("--max-length", 64, "--bins", 3, "--order", order, "--by", "meta.score", "--keep", "meta.score<5"),
        *("--keep", "meta.score>=0.5", "--packing", "best-fit"),
    )
    number = {one["text"]: one["meta"]["score"] for one in scored}
    bins = [[number[text] for text in own] for own in texts_by_bin(tmp_path / "out", byte_level)]
    assert sorted(chain.from_iterable(bins)) == sorted(v for v in number.values() if 0.5 <= v < 5)
    for before, after in pairwise(bins):
        if order == EASY:
            assert max(before) <= min(after)
        else:
            assert min(before) >= max(after)
    ledger = json.loads((tmp_path / "out" / "llmforge.json").read_text())["metrics"]
    assert "not meta.score<5" in json.dumps(ledger)
    assert "not meta.score>=0.5" in json.dumps(ledger)


def test_documents_without_the_number_are_rejected_by_line(
    llmforge: Any, byte_level: Path, tmp_path: Path
) -> None:
    bad: list[dict[str, Any]] = [
        {"text": "a"},
        {"text": "b", "bits_per_byte": "2"},
        {"text": "c", "bits_per_byte": True},
    ]
    data = write_jsonl(tmp_path / "d.jsonl", [{"text": "good", "bits_per_byte": 1}, *bad])
    command = ["prepare-data", "--data", data, "--output", tmp_path / "out", "--tokenizer", byte_level]
    command += ["--order", "easy-to-hard"]
    done = llmforge(*command, code=1)
    assert "line 2: no number 'bits_per_byte'" in done.stderr
    llmforge(*command, "--max-rejected", 0.9)
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out" / "rejected.jsonl").open()]
    assert reasons == ["no number 'bits_per_byte'"] + ["'bits_per_byte' is not a number"] * 2
    (tmp_path / "a.txt").write_text("a text")
    refused = llmforge("prepare-data", "--data", tmp_path / "a.txt", *command[3:5], *command[5:], code=1)
    assert "is a text without fields" in refused.stderr
    assert "give --order" in llmforge(*command[:-2], "--by", "score", code=2).stderr


def test_conversations_may_be_scored_too(llmforge: Any, byte_level: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    data = write_jsonl(
        tmp_path / "d.jsonl",
        [{"messages": messages, "score": i} for i in range(4)] + [{"text": "t", "score": 9}],
    )
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}{{ m.role }}:{{ m.content }}<|endoftext|>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    llmforge(
        *(
            "prepare-data",
            "--data",
            data,
            "--output",
            tmp_path / "out",
            "--tokenizer",
            byte_level,
            "--bins",
            1,
        ),
        *("--format", "chat", "--chat-template", tmp_path / "t.jinja", "--keep", "score<=2"),
    )
    metrics = json.loads((tmp_path / "out" / "llmforge.json").read_text())["metrics"]
    assert "not score<=2" in json.dumps(metrics)
    data_set = PackedDataset([tmp_path / "out"])
    assert sum(len(row.seq_lengths) for row in data_set.rows(range(len(data_set)))) == 3
