"""An inspection (`inspect_dataset`) as text for a terminal, or as one HTML page."""

import html
from collections.abc import Mapping
from typing import Any

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
    names = sorted({name for bucket in found["buckets"] for name in bucket["categories"]})
    kinds = sorted({name for bucket in found["buckets"] for name in bucket["rows_by_category"]})
    heads = "".join(f"<th>{html.escape(name)}" for name in kinds)
    by_category = "".join(
        f"<tr><td>{number}" + "".join(f"<td>{bucket['rows_by_category'].get(name, 0):,}" for name in kinds)
        for number, bucket in enumerate(found["buckets"])
    )
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><td>{number}<td>{bucket['rows']:,}<td>{bucket['tokens']:,}<td>{bucket['fill']:.2%}"
        + "".join(f"<td>{_shares(bucket).get(name, 0):.1%}" for name in names)
        for number, bucket in enumerate(found["buckets"])
    )
    most = max(found["lengths"].values(), default=1)
    bars = "".join(
        f"<tr><td>{top // 2 + 1:,} to {top:,}<td>{count:,}<td class=bar><i style='width:{100 * count / most:.1f}%'></i>"
        for top, count in found["lengths"].items()
    )
    samples = f"<p>{UNDECODED}" if found["samples"] and not found["decoded"] else ""
    samples += "".join(_sample_html(sample) for sample in found["samples"])
    return f"""<!doctype html><meta charset=utf-8><title>{html.escape(found["directories"][0])}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}}
td,th{{padding:.1em .8em;text-align:right}}pre{{white-space:pre-wrap;border-left:3px solid
#69c;padding-left:1em}} .bar{{width:20em;text-align:left}}.bar i{{display:block;height:1em;background:#69c}}
s{{color:#888}}small{{color:#666}}</style>
<h1>{html.escape(", ".join(found["directories"]))}</h1><p>{html.escape(_headline(found))}
<h2>Bins</h2><table><tr><th>bin<th>rows<th>tokens<th>fill{head}</tr>{rows}</table>
<h2>Rows by category</h2><table><tr><th>bin{heads}</tr>{by_category}</table>
<h2>Documents and fragments by tokens</h2><table>{bars}</table><h2>Samples</h2>{samples}
"""


def _sample_html(sample: Mapping[str, Any]) -> str:
    parts = [f"<h3>Row {sample['row']:,}, {sample['tokens']:,} tokens</h3>"]
    for piece in sample["pieces"]:
        text = "".join(
            f"<s>{html.escape(s['text'])}</s>" if s["masked"] else html.escape(s["text"])
            for s in piece["stretches"]
        )
        more = " […]" if piece["shown"] < piece["tokens"] else ""
        label = f"{html.escape(piece['category'])}, {piece['tokens']:,} tokens"
        parts.append(f"<small>{label}</small><pre>{text}{more}</pre>")
    return "".join(parts)


def _headline(found: Mapping[str, Any]) -> str:
    most = found["documents_per_row"]
    return (
        f"{found['rows']:,} rows of at most {found['max_length']:,} tokens and "
        f"{'one document' if most == 1 else f'{most:,} documents'}, {found['tokens']:,} tokens, fill "
        f"{found['fill']:.2%}, {found['bytes_per_token']:.2f} bytes of text per token, {len(found['buckets'])} bins"
    )


def _shares(bucket: Mapping[str, Any]) -> dict[str, float]:
    total = max(1, bucket["tokens"])
    return {name: counts["tokens"] / total for name, counts in bucket["categories"].items()}
