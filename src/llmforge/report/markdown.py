"""Markdown that shows any text as it is: labels, paths and values come from users and their files."""

import re
from collections.abc import Sequence

from llmforge.console import printable
from llmforge.report.blocks import Bars, Block, Curves, Heading, Paragraph, Sample, Table
from llmforge.report.numbers import short

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


def page(title: str, blocks: Sequence[Block]) -> str:
    """The text of `blocks` under a title; curves are their first, lowest, highest and last values."""
    return "\n".join([f"# {cell(title)}\n", *filter(None, map(_block, blocks))])


def _block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {cell(block.text)}\n"
    if isinstance(block, Paragraph):
        return f"{cell(block.text)}\n"
    if isinstance(block, Table):
        return table(block.header, block.rows, block.text_columns)
    if isinstance(block, Sample):
        return f"{cell(block.label)}\n\n{_fenced(''.join(text for text, _ in block.stretches))}"
    return _bars(block) if isinstance(block, Bars) else _curves(block)


def _curves(block: Curves) -> str:
    rows = []
    for name, line in block.lines.items():
        if line:
            lowest, highest = min(line, key=lambda point: point[1]), max(line, key=lambda point: point[1])
            rows.append(
                [name, *(f"{short(y)} at {short(x)}" for x, y in (line[0], lowest, highest, line[-1]))]
            )
    header = [f"{block.y} by {block.x}", "first", "lowest", "highest", "last"]
    return f"### {cell(block.title)}\n\n{table(header, rows)}" if rows else ""


def _bars(block: Bars) -> str:
    rows = [
        [label, name, f"{value:,.{block.digits}f}"]
        for label, group in block.groups.items()
        for name, value in group.items()
    ]
    return f"### {cell(block.title)}\n\n{table(['', '', ''], rows, text_columns=(0, 1))}"


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{printable(text)}\n{fence}\n"


def _escaped(match: re.Match[str]) -> str:
    return {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(match[0], "\\" + match[0])
