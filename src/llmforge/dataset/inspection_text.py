"""An inspection (`inspect_dataset`) as text for a terminal, or as one HTML page."""

from collections.abc import Mapping
from typing import Any

from llmforge.report import html as page
from llmforge.report.blocks import Bars, Block, Heading, Paragraph, Sample, Table

BAR = 40
UNDECODED = "The samples are ids; --tokenizer shows their text."


def as_text(found: Mapping[str, Any]) -> str:
    """Tables, bars and samples; masked text stands between ⟦ and ⟧, a line of dashes before each document."""
    lines = [_headline(found), "", f"{'bin':14}{'rows':>12}{'tokens':>16}{'fill':>9}  tokens by category"]
    for number, bucket in enumerate(found["buckets"]):
        shares = ", ".join(f"{name} {share:.1%}" for name, share in _shares(bucket).items())
        lines.append(
            f"{number:<14}{bucket['rows']:>12,}{bucket['tokens']:>16,}{bucket['fill']:>9.2%}  {shares}"
        )
    lines += ["", f"{'bin':14}rows by category"]
    for number, bucket in enumerate(found["buckets"]):
        counts = ", ".join(f"{name} {rows:,}" for name, rows in bucket["rows_by_category"].items())
        lines.append(f"{number:<14}{counts}")
    lines += ["", "documents and fragments by tokens"]
    most = max(found["lengths"].values(), default=1)
    for top, count in found["lengths"].items():
        lines.append(f"{top // 2 + 1:>9,} to {top:>9,}{count:>12,}  {'█' * round(BAR * count / most)}")
    if found["samples"] and not found["decoded"]:
        lines += ["", UNDECODED]
    for sample in found["samples"]:
        lines += ["", f"row {sample['row']:,} of {sample['tokens']:,} tokens"]
        for piece in sample["pieces"]:
            lines.append(f"---- {piece['category']}, {piece['tokens']:,} tokens")
            text = "".join(f"⟦{s['text']}⟧" if s["masked"] else s["text"] for s in piece["stretches"])
            lines.append(text + (" [...]" if piece["shown"] < piece["tokens"] else ""))
    return "\n".join(lines)


def as_html(found: Mapping[str, Any]) -> str:
    """One page without scripts or links; masked text is gray and struck through."""
    buckets = found["buckets"]
    names = sorted({name for bucket in buckets for name in bucket["categories"]})
    kinds = sorted({name for bucket in buckets for name in bucket["rows_by_category"]})
    bins = [
        [
            *(str(number), f"{bucket['rows']:,}", f"{bucket['tokens']:,}", f"{bucket['fill']:.2%}"),
            *(f"{_shares(bucket).get(name, 0):.1%}" for name in names),
        ]
        for number, bucket in enumerate(buckets)
    ]
    by_category = [
        [str(number), *(f"{bucket['rows_by_category'].get(name, 0):,}" for name in kinds)]
        for number, bucket in enumerate(buckets)
    ]
    lengths = {f"{top // 2 + 1:,} to {top:,} tokens": count for top, count in found["lengths"].items()}
    blocks: list[Block] = [
        Paragraph(_headline(found)),
        Heading("Bins"),
        Table(["bin", "rows", "tokens", "fill", *names], bins),
        Heading("Rows by category"),
        Table(["bin", *kinds], by_category),
        Bars("Documents and fragments by tokens", {"": lengths}, digits=0),
        Heading("Samples"),
    ]
    if found["samples"] and not found["decoded"]:
        blocks.append(Paragraph(UNDECODED))
    for sample in found["samples"]:
        blocks.append(Heading(f"Row {sample['row']:,}, {sample['tokens']:,} tokens", 3))
        for piece in sample["pieces"]:
            stretches = [(s["text"], s["masked"]) for s in piece["stretches"]]
            more = [(" […]", False)] if piece["shown"] < piece["tokens"] else []
            blocks.append(Sample(f"{piece['category']}, {piece['tokens']:,} tokens", [*stretches, *more]))
    return page.page(", ".join(found["directories"]), blocks)


def _headline(found: Mapping[str, Any]) -> str:
    most = found["documents_per_row"]
    return (
        f"{found['rows']:,} rows of at most {found['max_length']:,} tokens and "
        f"{'one document' if most == 1 else f'{most:,} documents'}, {found['tokens']:,} tokens, fill "
        f"{found['fill']:.2%}, {found['bytes_per_token']:.2f} bytes of trained text per token, {len(found['buckets'])} bins"
    )


def _shares(bucket: Mapping[str, Any]) -> dict[str, float]:
    total = max(1, bucket["tokens"])
    return {name: counts["tokens"] / total for name, counts in bucket["categories"].items()}
