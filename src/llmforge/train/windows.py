"""Mixtures that change at given steps (`--mix-later`). Imports no torch."""

from collections.abc import Sequence

from llmforge.dataset.options import parse_mix
from llmforge.errors import UsageError


def parse_windows(flag: str, items: Sequence[str]) -> str | None:
    """`500:zh=0.9 en=0.1 900:zh=1 en=0` as one text, with commas; raises `UsageError` where it is none."""
    text = ",".join(item.strip() for item in items)
    return text if read_windows(flag, text) else None


def read_windows(flag: str, text: str) -> dict[int, dict[str, float]]:
    """The weights of each category from each step on, in the order of steps."""
    windows: dict[int, list[str]] = {}
    for item in text.split(","):
        step, colon, rest = item.rpartition(":")
        if colon:
            if not step.isdigit() or int(step) < 1 or (windows and int(step) <= max(windows)):
                raise UsageError(
                    f"{flag} {item}: must be STEP:CATEGORY=WEIGHT,... with rising steps; write 500:zh=0.9,en=0.1."
                )
            windows[int(step)] = []
        if not windows:
            raise UsageError(f"{flag} {item} has no step; write 500:zh=0.9,en=0.1.")
        windows[max(windows)].append(rest)
    return {step: parse_mix(flag, mix) for step, mix in windows.items()}


def check_windows(flag: str, first: dict[str, float], windows: dict[int, dict[str, float]]) -> None:
    """Raises `UsageError` unless all mixtures read the same categories, so that an epoch has the same rows in all."""
    read = sorted(name for name, weight in first.items() if weight)
    for step, mix in windows.items():
        if sorted(mix) != sorted(first) or sorted(name for name, weight in mix.items() if weight) != read:
            raise UsageError(
                f"{flag} {step}: must read the categories of --mix ({', '.join(read)}), and name those that it leaves out; a "
                "small weight, such as 0.001, all but leaves one out."
            )
