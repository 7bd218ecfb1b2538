"""Several models on the same documents, as one table."""

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmforge.console import progress
from llmforge.corpus import labelled
from llmforge.corpus.sources import own_label
from llmforge.errors import UsageError
from llmforge.evaluate.options import ProtocolOptions
from llmforge.evaluate.texts import load_corpora
from llmforge.hub import title
from llmforge.report import markdown as report
from llmforge.steps import Finished, Outcome, Step, run_step

Results = dict[str, dict[str, dict[str, Any]]]
SUFFIXES = (".json", ".md")


def compare(
    models: Sequence[Path], data: Sequence[str], protocol: ProtocolOptions, trust_remote_code: bool = False
) -> Results:
    """Measures every model, one in memory at a time, on every `[LABEL=]PATH` of `data`.

    `results[model][label]` has `bits_per_byte`, `tokens_per_character` and the counts behind them
    (`llmforge.evaluate.bits.Bits`), and with `protocol.per_document` those of each document.
    """
    corpora = load_corpora(
        data, protocol.max_documents, protocol.max_characters, protocol.by_category, protocol.reading
    )
    from llmforge.evaluate.bits import measure  # torch, and only once the texts are known to be readable
    from llmforge.evaluate.models import load_model
    from llmforge.weights.architecture import positions

    results: Results = {}
    for name, directory in zip(_names(models), models, strict=True):
        loaded = load_model(directory, protocol.dtype, trust_remote_code)
        longest = min(protocol.max_length, positions(loaded.model.config) or protocol.max_length)
        results[name] = {}
        for corpus in corpora:
            with progress(f"{name}, {corpus.label}", None, "tokens") as advance:
                bits = measure(loaded, corpus, longest, protocol.batch_tokens, advance)
            results[name][corpus.label] = {
                key: value
                for key, value in asdict(bits).items()
                if protocol.per_document or not isinstance(value, list)
            }
        del loaded
        gc.collect()
    return results


def compare_to_file(
    models: Sequence[Path],
    data: Sequence[str],
    protocol: ProtocolOptions,
    output: Path,
    overwrite: bool,
    trust_remote_code: bool = False,
) -> Finished:
    """`compare` as a step that writes its table to `output` (.json, .md); the results are its metrics."""
    if output.suffix not in SUFFIXES:
        raise UsageError(f"--output {output}: the file name must end in {' or '.join(SUFFIXES)}.")
    given = labelled(data)

    def build(path: Path) -> Outcome:
        results = compare(models, data, protocol, trust_remote_code)
        text = json.dumps(results, ensure_ascii=False, indent=2) + "\n"
        path.write_text(text if path.suffix == ".json" else markdown(results), encoding="utf-8")
        return Outcome(metrics=results)

    labels = [label or own_label(path) for label, path in given]
    paths = [path for _, path in given]
    arguments = {**protocol.arguments(), "models": _names(models), "labels": labels}
    return run_step(
        Step("evaluate", output, arguments, [*models, *paths], overwrite=overwrite, single_file=True), build
    )


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of text cells: a model a row, bits per byte and tokens per character for each label."""
    labels = list(next(iter(results.values())))
    header = ["model", *(f"{label} {what}" for label in labels for what in ("bits/byte", "tokens/char"))]
    rows = [
        [name, *(cell for label in labels for cell in _cells(result[label]))]
        for name, result in results.items()
    ]
    return header, rows


def markdown(results: Results) -> str:
    """The table in Markdown."""
    return report.table(*table(results))


def _cells(bits: dict[str, Any]) -> tuple[str, str]:
    return f"{bits['bits_per_byte']:.4f}", f"{bits['tokens_per_character']:.3f}"


def _names(directories: Sequence[Path]) -> list[str]:
    """The directories' own names (of the Hub: their repositories') where they differ, else the whole paths."""
    names = [title(directory) for directory in directories]
    return names if len(set(names)) == len(names) else [str(directory) for directory in directories]
