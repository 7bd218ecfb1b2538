"""Tables as one HTML page without scripts or links; every text is shown as it is."""

from collections.abc import Sequence
from html import escape

from llmforge.console import printable

STYLE = (
    "body{font:15px/1.5 sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}th,td{padding:.2em .7em;border-bottom:1px solid #ccc;text-align:right}"
    "th:first-child,td:first-child{text-align:left}"
)


def page(title: str, tables: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]]) -> str:
    """A page of (header, rows)."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n"
        f"{''.join(table(*one) for one in tables)}</body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """One table; the first column is text, the others are numbers."""
    body = "".join(_row(row, "td") + "\n" for row in rows)
    return f"<table><thead>{_row(header, 'th')}</thead>\n<tbody>{body}</tbody></table>\n"


def _row(cells: Sequence[str], kind: str) -> str:
    return "<tr>" + "".join(f"<{kind}>{escape(printable(cell))}</{kind}>" for cell in cells) + "</tr>"
