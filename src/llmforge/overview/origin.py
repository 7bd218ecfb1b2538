"""The model and the data of trainings, from the manifests of the steps behind them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmforge.hub import name_of
from llmforge.overview.training import Training
from llmforge.report.blocks import Block, Heading, Paragraph, Table
from llmforge.report.numbers import short
from llmforge.steps import Manifest
from llmforge.weights.lineage import PARTS, Artifact

MOST_CATEGORIES = 50


def origin(trainings: Iterable[Training]) -> list[Block]:
    """The steps before the trainings, what they began with, and each dataset by category."""
    found: dict[tuple[Path, str], Artifact] = {}
    for training in trainings:
        for one in training.artifacts():
            found.setdefault((one.path.resolve(), one.fingerprint), one)
    made = [(one, one.manifest) for one in found.values() if one.manifest and one.manifest.step not in PARTS]
    made.sort(key=lambda pair: pair[1].created)
    blocks: list[Block] = []
    if made:
        rows = [
            [manifest.step, str(one.path), manifest.created, _figures(manifest)] for one, manifest in made
        ]
        blocks += [
            Heading("Model and data"),
            Paragraph("The steps behind the trainings, by the time at which they ended."),
            Table(["step", "output", "ended", "figures"], rows, text_columns=(0, 1, 2, 3)),
        ]
    if starts := [one for one in found.values() if not one.manifest]:
        rows = [[name_of(one.path) or str(one.path), one.fingerprint] for one in starts]
        blocks += [
            Paragraph(
                "Inputs that llmforge did not make, or that are no longer where they were or what they were."
            ),
            Table(["input", "fingerprint"], rows, text_columns=(0, 1)),
        ]
    for one, manifest in made:
        if manifest.step == "prepare-data":
            blocks += _dataset(one.path, manifest)
    return blocks


def _figures(manifest: Manifest) -> str:
    """What matters of a step, in a line."""
    outputs, metrics, arguments = manifest.outputs, manifest.metrics, manifest.arguments
    parts: list[str] = []
    if manifest.step == "learn-pieces":
        parts.append(f"{_count(outputs.get('pieces'))} tokens learned")
        if metrics.get("tokens_before"):
            parts.append(
                f"{_count(metrics['tokens_before'])} -> {_count(metrics.get('tokens_after'))} tokens"
            )
    elif manifest.step == "init-tokenizer":
        parts.append(f"{_count(outputs.get('source_size'))} -> {_count(outputs.get('size'))} tokens")
    elif manifest.step == "prepare-data":
        parts += [f"{_count(metrics.get(name))} {name}" for name in ("rows", "tokens")]
    elif manifest.step == "train":
        parts += [f"{_count(metrics.get(name))} {name}" for name in ("steps", "tokens")]
    elif isinstance(rows := outputs.get("vocabulary"), dict):
        parts.append(f"vocabulary {_count(rows.get('size'))}, {_count(rows.get('source'))} of them old")
        parts += [f"{name} {arguments[name]}" for name in ("init", "method") if arguments.get(name)]
    return ", ".join(parts)


def _dataset(path: Path, manifest: Manifest) -> list[Block]:
    metrics, ledger = manifest.metrics, manifest.metrics.get("ledger")
    if not isinstance(ledger, dict) or not isinstance(ledger.get("categories"), dict):
        return []
    entries = sorted(ledger["categories"].items(), key=lambda entry: -_written(entry[1], "tokens"))
    whole = max(1, _written(ledger, "tokens"))
    rows = [_row(name, part, whole) for name, part in entries[:MOST_CATEGORIES]]
    rows.append(_row("all", ledger, whole))
    fill = metrics.get("fill")
    facts = [
        f"{_count(metrics.get('rows'))} rows of at most {_count(manifest.outputs.get('max_length'))} tokens",
        *([f"{fill:.2%} full"] if isinstance(fill, float) else []),
        *([f"{len(entries) - MOST_CATEGORIES:,} more categories"] if len(entries) > MOST_CATEGORIES else []),
    ]
    header = ["category", "documents", "tokens", "share", "rejected documents", "rejected because of"]
    return [
        Heading(f"Dataset {path}", 3),
        Paragraph(", ".join(facts) + "."),
        Table(header, rows, text_columns=(0, 5)),
    ]


def _row(name: str, ledger: Any, whole: int) -> list[str]:
    rejected = ledger.get("rejected", {})
    reasons = rejected.get("reasons", {})
    return [
        name,
        f"{_written(ledger, 'documents'):,}",
        f"{_written(ledger, 'tokens'):,}",
        f"{_written(ledger, 'tokens') / whole:.1%}",
        f"{rejected.get('documents', 0):,}",
        ", ".join(f"{reason} {part.get('documents', 0):,}" for reason, part in reasons.items()),
    ]


def _written(ledger: Mapping[str, Any], what: str) -> int:
    found: int = ledger.get("written", {}).get(what, 0)
    return found


def _count(value: Any) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "?"
    return f"{value:,}" if isinstance(value, int) else short(value)
