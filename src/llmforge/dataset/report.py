"""What a preparation did, in a few lines."""

from collections.abc import Mapping
from typing import Any

from llmforge.steps import Manifest


def summary_text(manifest: Manifest) -> str:
    """Rows, tokens, fill and the ledger, as text; for a shard, what is in it."""
    if "ledger" not in manifest.metrics:
        made = manifest.metrics
        return f"{made['documents']:,} documents, {made['tokens']:,} tokens; --merge joins all shards into the dataset"
    metrics, ledger = manifest.metrics, manifest.metrics["ledger"]
    lines = [
        f"{metrics['rows']:,} rows of at most {manifest.outputs['max_length']:,} tokens"
        f"{' and one document' if manifest.arguments['documents_per_row'] else ''}, "
        f"{metrics['tokens']:,} tokens, "
        f"fill {metrics['fill']:.2%}, encoded with {metrics['encoder']['backend']}",
        f"{'':24}{'documents':>14}{'tokens':>18}",
    ]

    def row(label: str, count: dict[str, int]) -> str:
        return f"{label:24}{count['documents']:>14,}{count['tokens']:>18,}"

    lines += [row(kind, ledger[kind]) for kind in ("read", "written", "rejected")]
    lines += [row(f"  {reason}", count) for reason, count in ledger["rejected"]["reasons"].items()]
    lines += [row(name, counts["written"]) for name, counts in ledger["categories"].items()]
    if split := metrics.get("split"):
        lines.append(
            f"{split['conversations']:,} conversations longer than a row split into {split['parts']:,}; {split['longer']:,} with one "
            "turn longer than a row continue in the next"
        )
    return "\n".join(lines)


def forecast_text(expected: Mapping[str, Any]) -> str:
    """A forecast, as text."""
    lines = [
        f"from {expected['sample_documents']:,} documents ({expected['sample_bytes'] / 1e6:.1f} MB of text) of "
        f"{expected['input_bytes'] / 1e6:,.1f} MB in {expected['files']:,} files, encoded with {expected['backend']}:",
        f"  tokens      about {expected['tokens']:,}",
        f"  rows        about {expected['rows']:,} of {expected['max_length']:,} tokens",
        f"  output      about {expected['output_bytes'] / 1e6:,.1f} MB",
        f"  temporary   about {expected['working_bytes'] / 1e6:,.1f} MB",
        f"  time        about {expected['seconds']:,.0f} s with {expected['workers']} workers",
    ]
    lines += [
        f"  {name:10}  {share:.1%} of the sampled tokens" for name, share in expected["categories"].items()
    ]
    return "\n".join(lines)
