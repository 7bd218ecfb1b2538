"""Rules that reward completions: what each gives, and mistakes in their file."""

from pathlib import Path

import pytest

from llmforge.align.rules import read_rules
from llmforge.errors import UserError


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("length: {least: 2, most: 3}", "abc", 1.0),
        ("length: {least: 2, most: 3}", "abcd", 0.0),
        ("length: {most: 2, unit: words}", "two words", 1.0),
        ("length: {most: 2, unit: tokens}", "two words", 0.0),
        ("length: {near: 10}", "12345", 0.5),
        ("regex: '^[0-9]+$'", "123", 1.0),
        ("regex: '^[0-9]+$'", "12a", 0.0),
        (r"share: '\p{Han}'", "天ab气", 0.5),
        ("share: 'a'", "", 0.0),
        ("format: json", '{"a": 1}', 1.0),
        ("format: json", "{", 0.0),
        ("repeats: 1", "a b a b", 0.5),
        ("repeats: 2", "天气天气", 1 / 3),
        ("repeats: 9", "a b", 0.0),
    ],
)
def test_a_rule_rewards_what_its_line_says(tmp_path: Path, rule: str, text: str, expected: float) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(f"rules:\n  - {rule}\n  - {rule}\n    reward: -0.25\n", encoding="utf-8")
    assert read_rules(file).reward(text, 7) == pytest.approx(0.75 * expected)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[1]", "key: value"),
        ("rules: []", "at least one rule"),
        ("rules: [a]", "rule 1 is not a mapping"),
        ("rules: [{regex: a, share: b}]", "exactly one of"),
        ("rules: [{python: a}]", "exactly one of"),
        ("rules: [{regex: '('}]", "no regular expression"),
        ("rules: [{regex: 1}]", "quotes"),
        ("rules: [{length: {}}]", "least or most"),
        ("rules: [{length: {least: 3, most: 2}}]", "least above most"),
        ("rules: [{length: {least: 3, units: words}}]", "no units"),
        ("rules: [{format: xml}]", "json is"),
        ("rules: [{repeats: 0}]", "from 1 on"),
        ("rules: [{regex: a, reward: .nan}]", "must be a number"),
        ("rules: [{regex: a, reward: true}]", "must be a number"),
        ("rules: [{regex: a, reward: .inf}]", "must be a number from -1e.09 to 1e.09"),
        (f"rules: [{{regex: a, reward: {10**400}}}]", "must be a number"),
        ("rules: [{length: {near: .inf}}]", "near must be a number"),
        (f"rules: [{{regex: '{'(' * 5000}{')' * 5000}'}}]", "nested too deeply"),
        ("rules: [{regex: a}]\nmax_kl: 1", "nothing beside it"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence_that_names_it(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=why) as found:
        read_rules(file)
    assert str(file) in str(found.value)


def test_a_pattern_that_takes_for_ever_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmforge.align.rules.SECONDS", 0.1)
    file = tmp_path / "rules.yaml"
    file.write_text(r"rules: [{regex: '^(\w+\s?)*$'}]")
    with pytest.raises(UserError, match="rule 1: the pattern took more than"):
        read_rules(file).reward("a" * 5000 + "!", 1)
