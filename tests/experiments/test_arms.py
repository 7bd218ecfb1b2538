"""Recipes of arms, and which texts are held out."""

import json

import pytest
from experiments.arms import all_arms, read_arms

from experiments import data


def test_the_arms_of_the_repository_are_arms_and_include_one_without_new_tokens_with_as_wide_a_sweep():
    arms = all_arms()
    rates = {}
    for arm in arms.values():
        rates.setdefault((arm.base, arm.family), set()).add(arm.learning_rate)
    for base in {arm.base for arm in arms.values()}:
        assert len(rates[base, "no new tokens"]) >= max(
            len(own) for key, own in rates.items() if key[0] == base
        )


def test_lists_are_sweeps(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "base: 5M\nbudget: 3e12\npieces: 9\ninit: [mean, focus]\nlearning_rate: [1.0e-3, 2.0e-3]\n"
    )
    arms = list(read_arms(tmp_path / "a.yaml"))
    assert [arm.name for arm in arms][:2] == [
        "a.init=mean.learning_rate=0.001",
        "a.init=mean.learning_rate=0.002",
    ]
    assert len({arm.family for arm in arms}) == 2
    assert arms[0].budget == 3e12  # a word in YAML


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("base: 5M\nlearning_rate: 1\nrate: 2\n", "rate; an arm has"),
        ("base: 5M\n", "learning_rate"),
        ("base: 5M\nlearning_rate: fast\n", "float"),
        ("base: 5M\nlearning_rate: 1\ninit: mean\n", "no new rows"),
        ("base: 5M\nlearning_rate: 1\npieces: 5\nfirst_parts: 2\n", "go together"),
        ("base: 5M\nlearning_rate: 1\npieces: 5\nfirst_parts: 8\nfirst_learning_rate: 1\n", "0 to 7"),
    ],
)
def test_what_contradicts_is_refused_by_file_or_arm(tmp_path, text, sentence):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        list(read_arms(tmp_path / "a.yaml"))


def test_no_document_is_in_training_and_held_out_also_where_it_stands_twice(tmp_path, monkeypatch):
    texts = [f"document {number} with a few words in it" for number in range(60)] * 2
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"target": text}) + "\n" for text in texts))
    source = data.Source("news", "unused", "t.jsonl", 4, str.strip)
    monkeypatch.setattr(data, "SOURCES", (source,))
    monkeypatch.setattr(data, "HOME", tmp_path)
    monkeypatch.setattr(data, "fetch", lambda _: tmp_path)
    made = data.make()
    sets = [
        [json.loads(line)["target"] for line in (made / folder / "news.jsonl").read_text().splitlines()]
        for folder in ("train", "held")
    ]
    assert sorted(sets[0] + sets[1]) == sorted(set(texts))
    assert all(sets)
    assert json.loads((made / "data.json").read_text())["held/news"]["documents"] == len(sets[1])


def test_an_excerpt_is_of_the_middle_and_begins_with_a_line():
    text = "\n".join(f"line {number}" for number in range(1000))
    cut = data.excerpt(text)
    assert len(cut) <= data.EXCERPT
    assert cut.splitlines()[0] in text.splitlines()
    assert 300 < int(cut.split()[1]) < 600
    assert data.excerpt("short") == "short"
