"""A comparison of tokenizers as Markdown, JSON, or one self-contained page of HTML with a bar chart."""

import json
from collections.abc import Sequence
from pathlib import Path

from llmforge.errors import UsageError
from llmforge.report import html as page
from llmforge.report import markdown as report
from llmforge.report.blocks import Bars, Table
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
    groups: dict[str, dict[str, float]] = {}
    for row in rows:
        groups.setdefault(row.label, {})[row.tokenizer] = row.compression
    chart = Bars("Tokens per character: a shorter bar is a denser tokenizer", groups)
    table = Table(HEADER, [cells(row) for row in rows], text_columns=(0, 2))
    return page.page("Tokenizers compared", [chart, table])


def _json(rows: Sequence[Row]) -> str:
    return json.dumps({"tokenizers": as_json(rows)}, ensure_ascii=False, indent=2) + "\n"
