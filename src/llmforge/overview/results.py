"""What came out: the tables of evaluate, and the texts of generate side by side."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmforge.evaluate.tables import tables
from llmforge.report.blocks import Block, Heading, Paragraph, Sample, Table
from llmforge.report.numbers import short
from llmforge.steps import Manifest

MOST_PROMPTS, LONGEST_TEXT, LONGEST_LINE = 12, 4000, 1 << 20
Made = Sequence[tuple[Path, Manifest]]


def comparisons(made: Made) -> list[Block]:
    """The tables of outputs of evaluate, the oldest first."""
    blocks: list[Block] = [Heading("Models compared")] if made else []
    for path, manifest in sorted(made, key=lambda pair: pair[1].created):
        blocks.append(Heading(str(path), 3))
        try:
            blocks += [Table(*cells) for cells in tables(manifest.metrics)]
        except (LookupError, TypeError, ValueError):  # models with other labels each
            blocks.append(Paragraph("Its figures are not those of one comparison and cannot be shown."))
    return blocks


def samples(made: Made) -> list[Block]:
    """Texts of generate by their prompts, the oldest first."""
    by_prompt: dict[str, list[tuple[str, str]]] = {}
    for path, manifest in sorted(made, key=lambda pair: pair[1].created):
        model = manifest.inputs[0].name or manifest.inputs[0].path if manifest.inputs else str(path)
        for prompt, text in _texts(path, manifest):
            if prompt in by_prompt or len(by_prompt) < MOST_PROMPTS:
                by_prompt.setdefault(prompt, []).append((f"{model} ({_drawn(manifest)})", text))
    blocks: list[Block] = [Heading("Samples")] if by_prompt else []
    for prompt, texts in by_prompt.items():
        blocks.append(Sample("prompt", [(_cut(prompt), False)]))
        blocks += [Sample(model, [(_cut(text), False)]) for model, text in texts]
    return blocks


def _texts(path: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(prompt, completion) of one output; of a file of prompts the first ones."""
    if "text" in manifest.metrics:
        yield str(manifest.arguments.get("prompt", "")), str(manifest.metrics["text"])
        return
    with path.open("rb") as file:
        for _ in range(MOST_PROMPTS):
            line = file.readline(LONGEST_LINE)
            try:
                record = json.loads(line)
                yield str(record["prompt"]), str(record["completion"])
            except (ValueError, LookupError, TypeError, RecursionError):  # its end, or a line of another kind
                return


def _drawn(manifest: Manifest) -> str:
    value = manifest.arguments.get("temperature")
    return f"temperature {short(value)}" if isinstance(value, int | float) and value else "greedy"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} [...]"
