"""Markdown tables whose cells show any text as it is: labels, paths and values come from users and their files."""

import re
from collections.abc import Sequence

from llmforge.console import printable

# What Markdown or the HTML in it would take for markup.
_MARKUP = re.compile(r"[\\`*\[\]<>|&]")


def cell(text: str) -> str:
    """`text` on one line, without markup."""
    return _MARKUP.sub(_escaped, printable(" ".join(text.split())))


def code(text: str) -> str:
    """`text` on one line as code, in as many backticks as it needs."""
    text = printable(" ".join(text.split()))
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " * (longest > 0)
    return f"{fence}{space}{text}{space}{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Sequence[int] = (0,)) -> str:
    """A table; the columns that are not in `text_columns` are aligned to the right."""
    rule = ["---" if number in text_columns else "---:" for number in range(len(header))]
    lines = [list(map(cell, header)), rule, *(list(map(cell, row)) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _escaped(match: re.Match[str]) -> str:
    return {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(match[0], "\\" + match[0])
