"""Writes docs/reference.md, every option of every command, from the declarations:  python tools/reference.py"""

from pathlib import Path

from llmforge.cli.app import functions_of
from llmforge.cli.command import example_text, written
from llmforge.cli.compat import spellings_of
from llmforge.options import Option
from llmforge.recipes.commands import COMMANDS

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"
HEAD = """# Reference

Written by `python tools/reference.py`; a test holds it up to date.

The name of an option is its flag, its key in recipes (`llmforge run`) and its key in the YAML file of `train --config`. Dashes
may be underscores. An option that takes several words takes them after one flag, separated by spaces or commas. Options
that are not given have the default in parentheses. `llmforge run --schema` prints all of this as the JSON schema of recipes.
"""


def page() -> str:
    """The text of the page."""
    return "\n".join([HEAD, *(section(name) for name in COMMANDS)])


def section(name: str) -> str:
    """A command: what it does, its options by group, other spellings, an example."""
    function = functions_of(name.split()[0])[name]
    parts = [
        f"## {name}\n",
        _unindented(function.__doc__ or ""),
        "```\n" + example_text(function, "") + "\n```\n",
    ]
    panels: dict[str, list[Option]] = {}
    for one in COMMANDS[name].all_options():
        panels.setdefault("Arguments" if one.positional else one.panel, []).append(one)
    for panel in sorted(panels, key=lambda panel: panel != "Arguments"):
        parts += [f"| {panel} | |", "|---|---|"]
        parts += [f"| `{_cell(written(one))}` | {_cell(one.help_line())} |" for one in panels[panel]]
        parts.append("")
    if spelled := spellings_of(name):
        words = [f"`{_flag(spelling)}` for `--{key}`" for spelling, key in spelled.items()]
        parts.append(f"Other spellings: {', '.join(words)}.\n")
    return "\n".join(parts)


def _flag(spelling: str) -> str:
    return f"-{spelling}" if len(spelling) == 1 else f"--{spelling}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _unindented(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines()) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
