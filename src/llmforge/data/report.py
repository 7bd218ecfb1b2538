"""What a preparation did, in a few lines."""

from llmforge.workspace import Manifest


def summary_text(manifest: Manifest) -> str:
    """Rows, tokens, fill and the ledger, as text."""
    metrics, ledger = manifest.metrics, manifest.metrics["ledger"]
    lines = [
        f"{metrics['rows']:,} rows of at most {manifest.outputs['max_length']:,} tokens, "
        f"{metrics['tokens']:,} tokens, "
        f"fill {metrics['fill']:.2%}, encoded with {metrics['encoder']['backend']}",
        f"{'':24}{'documents':>14}{'tokens':>18}",
    ]

    def row(label: str, count: dict[str, int]) -> str:
        return f"{label:24}{count['documents']:>14,}{count['tokens']:>18,}"

    lines += [row(kind, ledger[kind]) for kind in ("read", "written", "rejected")]
    lines += [row(f"  {reason}", count) for reason, count in ledger["rejected"]["reasons"].items()]
    lines += [row(name, counts["written"]) for name, counts in ledger["categories"].items()]
    return "\n".join(lines)
