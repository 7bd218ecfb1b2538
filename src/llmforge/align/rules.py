"""Rules that reward a completion by its text: a YAML or JSON file, and no program.

    rules:
      - length: {least: 20, most: 200, unit: characters}   # or near: 50, which rewards by the distance
      - regex: '^[^!]*$'          # found in the text
        reward: 0.5               # what the rule is worth (default: 1); below 0 for what is not wanted
      - share: '[一-鿿]'           # the share of the characters that match
      - format: json              # the text is JSON
      - repeats: 3                # the share of three words in a row that stood in the text before
        reward: -1

The rewards of all rules are added.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from llmforge.errors import UserError
from llmforge.yaml_file import read_yaml

UNITS = ("characters", "words", "tokens")
SECONDS = 5.0  # for one pattern on one text
LARGEST = 1e9  # rewards are float32 in training
# How well a completion, its text and its number of tokens, keeps a rule: 0 to 1.
Rule = Callable[[str, int], float]


@dataclass(frozen=True)
class Rules:
    """Rules, and what each is worth."""

    rules: tuple[tuple[Rule, float], ...]

    def reward(self, text: str, tokens: int) -> float:
        """The sum over all rules, of a completion of `tokens` tokens."""
        return math.fsum(worth * rule(text, tokens) for rule, worth in self.rules)


def read_rules(file: Path) -> Rules:
    """The rules of `file`; `UserError` names the rule that is none."""
    given = read_yaml(file, "--rules")
    stated = given.get("rules")
    if not isinstance(stated, list) or not stated or len(given) > 1:
        raise UserError(f'--rules {file} needs a list "rules" with at least one rule, and nothing beside it.')
    made = []
    for number, one in enumerate(stated, 1):
        place = f"--rules {file}, rule {number}"
        if not isinstance(one, dict):
            raise UserError(f"{place} is not a mapping such as `regex: PATTERN`.")
        kinds = [key for key in one if key != "reward"]
        if len(kinds) != 1 or kinds[0] not in KINDS:
            raise UserError(f"{place} needs exactly one of {', '.join(KINDS)}, and may have reward.")
        worth = _number(place, "reward", one.get("reward", 1.0))
        made.append((KINDS[kinds[0]](place, one[kinds[0]]), worth))
    return Rules(tuple(made))


def _length(place: str, stated: Any) -> Rule:
    if not isinstance(stated, dict) or not stated.keys() & {"least", "most", "near"}:
        raise UserError(f"{place}: length needs least or most, or near, such as {{least: 20, most: 200}}.")
    if unknown := sorted(map(str, stated.keys() - {"least", "most", "near", "unit"})):
        raise UserError(f"{place}: length has no {unknown[0]}; known are least, most, near and unit.")
    unit = stated.get("unit", "characters")
    if unit not in UNITS:
        raise UserError(f"{place}: unit {unit} must be one of {', '.join(UNITS)}.")
    least = _number(place, "least", stated["least"]) if "least" in stated else 0.0
    most = _number(place, "most", stated["most"]) if "most" in stated else math.inf
    near = _number(place, "near", stated["near"]) if "near" in stated else None
    if least > most or (near is not None and near <= 0):
        raise UserError(f"{place}: length has least above most, or near 0 or less.")

    def rule(text: str, tokens: int) -> float:
        size = {"characters": len(text), "words": len(text.split()), "tokens": tokens}[unit]
        kept = 1.0 if least <= size <= most else 0.0
        return kept if near is None else kept * max(0.0, 1 - abs(size - near) / near)

    return rule


def _regex(place: str, stated: Any) -> Rule:
    pattern = _pattern(place, stated)
    return lambda text, _: float(_timed(place, lambda: pattern.search(text, timeout=SECONDS)) is not None)


def _share(place: str, stated: Any) -> Rule:
    pattern = _pattern(place, stated)

    def rule(text: str, _: int) -> float:
        found = _timed(place, lambda: sum(len(one[0]) for one in pattern.finditer(text, timeout=SECONDS)))
        return float(found) / len(text) if text else 0.0

    return rule


def _format(place: str, stated: Any) -> Rule:
    if stated != "json":
        raise UserError(f"{place}: format {stated} is not known; json is.")

    def rule(text: str, _: int) -> float:
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return 0.0
        return 1.0

    return rule


def _repeats(place: str, stated: Any) -> Rule:
    if not isinstance(stated, int) or isinstance(stated, bool) or stated < 1:
        raise UserError(f"{place}: repeats needs a number of words from 1 on.")
    size = stated

    def rule(text: str, _: int) -> float:
        # A Chinese or Japanese character counts as a word.
        words = regex.findall(
            r"[\p{Han}\p{Hiragana}\p{Katakana}]|[^\s\p{Han}\p{Hiragana}\p{Katakana}]+", text
        )
        parts = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
        return 1 - len(set(parts)) / len(parts) if parts else 0.0

    return rule


KINDS: Mapping[str, Callable[[str, Any], Rule]] = {
    "length": _length,
    "regex": _regex,
    "share": _share,
    "format": _format,
    "repeats": _repeats,
}


def _pattern(place: str, stated: Any) -> Any:
    if not isinstance(stated, str):
        raise UserError(f"{place}: a pattern must be text; put it in quotes.")
    try:
        return regex.compile(stated)
    except regex.error as error:
        raise UserError(f"{place}: {stated!r} is no regular expression ({error}).") from None
    except RecursionError:
        raise UserError(f"{place}: the pattern is nested too deeply; simplify it.") from None


def _timed(place: str, search: Callable[[], Any]) -> Any:
    try:
        return search()
    except TimeoutError:
        raise UserError(
            f"{place}: the pattern took more than {SECONDS:g} s for one text; simplify it."
        ) from None


def _number(place: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
        raise UserError(f"{place}: {name} must be a number from {-LARGEST:g} to {LARGEST:g}.")
    return float(value)
