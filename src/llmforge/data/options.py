"""Values of flags that are more than a word or a number."""

from collections.abc import Sequence
from typing import Any

from llmforge.errors import UsageError


def parse_share(flag: str, text: str) -> float:
    """`0.5%` or `0.005` as 0.005; a `UsageError` for anything that is no share."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"{flag} {text} is not a share; write 0.5% or 0.005.")
    return value


def parse_choice(flag: str, text: str, choices: Sequence[str]) -> Any:
    """`text`, if it is one of `choices`."""
    if text not in choices:
        raise UsageError(f"{flag} {text} is not known; choose one of {', '.join(choices)}.")
    return text
