"""Reports as one HTML page without scripts or links; every text is shown as it is."""

from collections.abc import Sequence
from html import escape

from llmforge.console import printable
from llmforge.report import chart
from llmforge.report.blocks import Bars, Block, Heading, Paragraph, Sample, Table

STYLE = (
    "body{font:15px/1.5 sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}th,td{padding:.2em .7em;border-bottom:1px solid #ccc;text-align:right;"
    "vertical-align:top}.t{text-align:left}div{overflow-x:auto}svg{max-width:100%;height:auto}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;border-left:3px solid #69c;padding-left:1em}s,small{color:#777}"
)


def page(title: str, blocks: Sequence[Block]) -> str:
    """The page of `blocks` under its title."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>\n'
        f"<style>{STYLE}</style></head>\n<body><h1>{_text(title)}</h1>\n{''.join(map(_block, blocks))}</body></html>\n"
    )


def _block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_text(block.text)}</h{block.level}>\n"
    if isinstance(block, Paragraph):
        return f"<p>{_text(block.text)}</p>\n"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Sample):
        parts = (f"<s>{_text(text)}</s>" if struck else _text(text) for text, struck in block.stretches)
        return f"<small>{_text(block.label)}</small><pre>{''.join(parts)}</pre>\n"
    drawn = chart.bars(block) if isinstance(block, Bars) else chart.curves(block)
    return f"<h3>{_text(block.title)}</h3>\n<div>{drawn}</div>\n" if drawn else ""


def _table(block: Table) -> str:
    body = "".join(_row(row, "td", block.text_columns) + "\n" for row in block.rows)
    head = _row(block.header, "th", block.text_columns)
    return f"<div><table><thead>{head}</thead>\n<tbody>{body}</tbody></table></div>\n"


def _row(cells: Sequence[str], kind: str, text_columns: Sequence[int]) -> str:
    shown = (
        f"<{kind}{' class=t' if number in text_columns else ''}>{_text(cell)}</{kind}>"
        for number, cell in enumerate(cells)
    )
    return f"<tr>{''.join(shown)}</tr>"


def _text(text: str) -> str:
    return escape(printable(text))
