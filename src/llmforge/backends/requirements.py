"""What backends ask of a machine, answered from the facts that `doctor` collected."""

from typing import Any


def broken(facts: dict[str, Any], name: str) -> list[str]:
    """Why a package cannot be used: [] where it can."""
    package = facts["packages"][name]
    if package is None:
        return [f"{name} is not installed"]
    return [f"{name} {package['version']} does not work ({package['error']})"] if "error" in package else []


def flash_attention(facts: dict[str, Any]) -> list[str]:
    problems = broken(facts, "flash-attn")
    return [f"PyTorch's own attention: {problems[0]}"] if problems else []


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (4, 51, 3) of 4.51.3."""
    found = []
    for word in version.split("."):
        if not word.isdigit():
            break
        found.append(int(word))
    return tuple(found)
