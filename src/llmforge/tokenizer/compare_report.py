"""A comparison of tokenizers as Markdown, JSON, or one self-contained page of HTML with a bar chart."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from llmforge.errors import UsageError
from llmforge.report import markdown as report
from llmforge.steps import check_report, write_report
from llmforge.tokenizer.compare import Row, as_json

COMMAND = "compare-tokenizers"

HEADER = (
    "tokenizer",
    "vocabulary",
    "label",
    "documents",
    "tokens/character",
    "tokens/byte",
    "tokens/document",
)
BAR, WIDTH, GAP, TEXT = 18, 560, 26, 260  # pixels


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table, as `HEADER` names its columns."""
    shares = (f"{row.compression:.4f}", f"{row.tokens_per_byte:.4f}", f"{row.mean_tokens:,.1f}")
    return (row.tokenizer, f"{row.vocabulary:,}", row.label, f"{row.samples:,}", *shares)


def check_output(path: Path) -> Path:
    """`path`, if its suffix says a format and nobody else's file is there."""
    if path.suffix not in (".md", ".json", ".html"):
        raise UsageError(f"--output {path}: the name must end in .md, .json or .html.")
    check_report(path, COMMAND, "--output")
    return path


def write(rows: Sequence[Row], path: Path) -> None:
    """Writes the comparison in the format that the suffix of `path` says."""
    text = {".md": markdown, ".json": _json, ".html": html}[path.suffix](rows)
    write_report(path, text, COMMAND, "--output")


def markdown(rows: Sequence[Row]) -> str:
    """A table."""
    return report.table(HEADER, [cells(row) for row in rows], text_columns=(0, 2))


def html(rows: Sequence[Row]) -> str:
    """A page: the bar chart, then the table."""
    head = "".join(f"<th>{escape(name)}</th>" for name in HEADER)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells(row)) + "</tr>\n" for row in rows)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Tokenizers compared</title>\n'
        "<style>body{font:15px/1.5 sans-serif;margin:2em auto;max-width:60em;padding:0 1em;color:#222}"
        "table{border-collapse:collapse}th,td{padding:.2em .7em;border-bottom:1px solid #ccc;text-align:right}"
        "th:nth-child(odd):nth-child(-n+3),td:nth-child(odd):nth-child(-n+3){text-align:left}"
        "svg{max-width:100%;height:auto}</style></head>\n<body><h1>Tokenizers compared</h1>\n"
        "<p>Tokens per character on the same texts: a shorter bar is a denser tokenizer.</p>\n"
        f"{_chart(rows)}\n<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>\n</body></html>\n"
    )


def _json(rows: Sequence[Row]) -> str:
    return json.dumps({"tokenizers": as_json(rows)}, ensure_ascii=False, indent=2) + "\n"


def _chart(rows: Sequence[Row]) -> str:
    """Bars of tokens per character, grouped by label."""
    longest = max(row.compression for row in rows)
    shades = {name: i for i, name in enumerate(dict.fromkeys(row.tokenizer for row in rows))}
    parts, y = [], 0
    for label in dict.fromkeys(row.label for row in rows):
        y += GAP
        parts.append(f'<text x="0" y="{y}" font-weight="bold">{escape(label)}</text>')
        y += 8
        for row in (row for row in rows if row.label == label):
            width = WIDTH * row.compression / longest
            color = f"hsl({shades[row.tokenizer] * 137 % 360},55%,50%)"
            baseline = y + BAR - 5
            parts.append(
                f'<text x="{TEXT - 8}" y="{baseline}" text-anchor="end">{escape(row.tokenizer)}</text>'
                f'<rect x="{TEXT}" y="{y}" width="{width:.1f}" height="{BAR - 3}" fill="{color}"/>'
                f'<text x="{TEXT + width + 6:.1f}" y="{baseline}">{row.compression:.3f}</text>'
            )
            y += BAR + 2
    width = TEXT + WIDTH + 70
    return (
        f'<svg role="img" aria-label="tokens per character" width="{width}" height="{y + 10}" '
        f'viewBox="0 0 {width} {y + 10}" font-family="sans-serif" font-size="13">{"".join(parts)}</svg>'
    )
