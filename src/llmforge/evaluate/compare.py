"""Several models on the same documents, as one table."""

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmforge.console import progress
from llmforge.corpus import labeled
from llmforge.corpus.sources import own_label
from llmforge.errors import UsageError
from llmforge.evaluate.options import ProtocolOptions, TaskOptions
from llmforge.evaluate.tasks.loading import Task, load_tasks
from llmforge.evaluate.tasks.tables import task_tables
from llmforge.evaluate.texts import load_corpora
from llmforge.hub import title
from llmforge.report import markdown as report
from llmforge.steps import Finished, Outcome, Step, run_step

Results = dict[str, dict[str, dict[str, Any]]]
SUFFIXES = (".json", ".md")


def compare(
    models: Sequence[Path],
    data: Sequence[str],
    protocol: ProtocolOptions,
    trust_remote_code: bool = False,
    tasks: Sequence[str] = (),
    asking: TaskOptions | None = None,
) -> Results:
    """Measures every model, one in memory at a time, on every `[LABEL=]PATH` of `data` and every `[NAME=]PATH` of `tasks`.

    `results[model][label]` has `bits_per_byte`, `tokens_per_character` and the counts behind them
    (`llmforge.evaluate.bits.Bits`), and with `protocol.per_document` those of each document; or what
    `tasks.measure.measure_task` gives.
    """
    asking = asking or TaskOptions()
    asked = load_tasks(tasks, asking.shots, asking.scoring, asking.max_questions)
    corpora = load_corpora(
        data, protocol.max_documents, protocol.max_characters, protocol.by_category, protocol.reading
    )
    if both := {task.label for task in asked} & {corpus.label for corpus in corpora}:
        raise UsageError(f"--data and --tasks both have {min(both)}; give LABEL=PATH.")
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
        if asked:
            results[name].update(_answered(name, loaded, asked, protocol))
        del loaded
        gc.collect()
    return results


def _answered(name: str, loaded: Any, asked: Sequence[Task], protocol: ProtocolOptions) -> dict[str, Any]:
    """What one model gives of every task."""
    from llmforge.evaluate.tasks.likelihood import Scorer
    from llmforge.evaluate.tasks.measure import measure_task

    scorer = Scorer(loaded, protocol.batch_tokens)
    found = {}
    for task in asked:
        with progress(f"{name}, {task.label}", None, "questions") as advance:
            found[task.label] = measure_task(loaded, task, scorer, advance)
    return found


def compare_to_file(
    models: Sequence[Path],
    data: Sequence[str],
    protocol: ProtocolOptions,
    output: Path,
    overwrite: bool,
    trust_remote_code: bool = False,
    tasks: Sequence[str] = (),
    asking: TaskOptions | None = None,
) -> Finished:
    """`compare` as a step that writes its tables to `output` (.json, .md); the results are its metrics."""
    if output.suffix not in SUFFIXES:
        raise UsageError(f"--output {output}: the file name must end in {' or '.join(SUFFIXES)}.")
    asking = asking or TaskOptions()
    given = labeled(data)
    files = labeled(tasks)

    def build(path: Path) -> Outcome:
        results = compare(models, data, protocol, trust_remote_code, tasks, asking)
        text = json.dumps(results, ensure_ascii=False, indent=2) + "\n"
        path.write_text(text if path.suffix == ".json" else markdown(results), encoding="utf-8")
        return Outcome(metrics=results)

    labels = [label or own_label(path) for label, path in given]
    arguments = {**protocol.arguments(), "models": _names(models), "labels": labels}
    if tasks:  # a comparison without them is the one that earlier versions made
        arguments["tasks"] = [label or own_label(path) for label, path in files]
        arguments.update(asking.arguments())
    paths = [path for _, path in (*given, *files)]
    return run_step(
        Step("evaluate", output, arguments, [*models, *paths], overwrite=overwrite, single_file=True), build
    )


def tables(results: Results) -> list[tuple[list[str], list[list[str]]]]:
    """(header, rows) of text cells, as many tables as there are kinds of results.

    Of texts: a model a row, bits per byte and tokens per character for each label. Of tasks: see `tasks.tables`.
    """
    labels = [label for label, one in next(iter(results.values())).items() if "bits_per_byte" in one]
    header = ["model", *(f"{label} {what}" for label in labels for what in ("bits/byte", "tokens/char"))]
    rows = [
        [name, *(cell for label in labels for cell in _cells(result[label]))]
        for name, result in results.items()
    ]
    return [*([(header, rows)] if labels else []), *task_tables(results)]


def markdown(results: Results) -> str:
    """The tables in Markdown."""
    return "\n".join(report.table(*one) for one in tables(results))


def _cells(bits: dict[str, Any]) -> tuple[str, str]:
    return f"{bits['bits_per_byte']:.4f}", f"{bits['tokens_per_character']:.3f}"


def _names(directories: Sequence[Path]) -> list[str]:
    """The directories' own names (of the Hub: their repositories') where they differ, else the whole paths."""
    names = [title(directory) for directory in directories]
    return names if len(set(names)) == len(names) else [str(directory) for directory in directories]
