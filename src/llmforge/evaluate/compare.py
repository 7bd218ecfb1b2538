"""Several models on the same documents, as one table."""

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmforge.console import progress
from llmforge.errors import UsageError
from llmforge.evaluate.bits import Bits, measure
from llmforge.evaluate.models import load_model
from llmforge.evaluate.texts import Corpus


@dataclass(frozen=True)
class Comparison:
    """`results[i]` holds what the model `models[i]` (its name in the table) needs for each label."""

    models: list[str]
    results: list[dict[str, Bits]]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """(header, rows) of text cells: a model a row, bits per byte and tokens per character for each label."""
        labels = list(self.results[0])
        header = [
            "model",
            *(f"{label}: {what}" for label in labels for what in ("bits/byte", "tokens/character")),
        ]
        rows = [
            [name, *(cell for label in labels for cell in _cells(result[label]))]
            for name, result in zip(self.models, self.results, strict=True)
        ]
        return header, rows

    def as_json(self) -> dict[str, Any]:
        results = [{label: asdict(bits) for label, bits in result.items()} for result in self.results]
        return dict(zip(self.models, results, strict=True))

    def markdown(self) -> str:
        header, rows = self.table()
        rule = ["---", *("---:" for _ in header[1:])]
        return "".join(f"| {' | '.join(line)} |\n" for line in [header, rule, *rows])


def compare(
    directories: Sequence[Path], corpora: Sequence[Corpus], max_length: int, batch_tokens: int, dtype: str
) -> Comparison:
    """Measures every model of `directories`, one in memory at a time, on every corpus."""
    results: list[dict[str, Bits]] = []
    for directory in directories:
        loaded = load_model(directory, dtype)
        limit = min(max_length, int(getattr(loaded.model.config, "max_position_embeddings", max_length)))
        result = {}
        for corpus in corpora:
            with progress(f"{directory.name}, {corpus.label}", None, "tokens") as advance:
                result[corpus.label] = measure(loaded, corpus, limit, batch_tokens, advance)
        results.append(result)
        del loaded
        gc.collect()
    return Comparison(_names(directories), results)


def check_output(output: Path) -> Path:
    """`output` if `write` can write it; a mistake in the name should show before the hours of measuring."""
    if output.suffix not in (".json", ".md"):
        raise UsageError(f"--output {output}: the name must end in .json or .md.")
    return output


def write(comparison: Comparison, output: Path) -> None:
    """Writes the comparison as .json or .md, whichever `output` is called."""
    if output.suffix == ".json":
        text = json.dumps(comparison.as_json(), ensure_ascii=False, indent=2) + "\n"
    else:
        text = comparison.markdown()
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(output)


def _cells(bits: Bits) -> tuple[str, str]:
    return f"{bits.bits_per_byte:.4f}", f"{bits.tokens_per_character:.3f}"


def _names(directories: Sequence[Path]) -> list[str]:
    """The directories' own names where they differ, else the whole paths."""
    names = [directory.name for directory in directories]
    return names if len(set(names)) == len(names) else [str(directory) for directory in directories]
