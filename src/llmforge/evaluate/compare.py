"""Several models on the same documents, questions and problems, as tables."""

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from llmforge.console import progress
from llmforge.corpus import labeled
from llmforge.corpus.sources import own_label
from llmforge.errors import UsageError
from llmforge.evaluate.code.problems import CodeTask, load_code
from llmforge.evaluate.code.sandbox import Sandbox
from llmforge.evaluate.options import Asked, ProtocolOptions
from llmforge.evaluate.tables import Results, tables
from llmforge.evaluate.tasks import harness
from llmforge.evaluate.tasks.loading import Task, load_tasks
from llmforge.evaluate.texts import Corpus, load_corpora
from llmforge.hub import title
from llmforge.report import html as page
from llmforge.report import markdown as report
from llmforge.report.blocks import Table
from llmforge.steps import Finished, Outcome, Step, run_step

SCORED = 64  # logits of a batch of questions: a few tokens of each row are looked at


def compare(
    models: Sequence[Path],
    data: Sequence[str],
    protocol: ProtocolOptions,
    trust_remote_code: bool = False,
    asked: Asked | None = None,
) -> Results:
    """Measures every model, one in memory at a time, on every `[LABEL=]PATH` of `data`, and on what is `asked`.

    `results[model][label]` has `bits_per_byte`, `tokens_per_character` and the counts behind them
    (`llmforge.evaluate.bits.Bits`), and with `protocol.per_document` those of each document; or what
    `tasks.measure.measure_task`, `tasks.harness.measure_harness` and `code.measure.measure_code` give.
    """
    asked = asked or Asked()
    own, named = harness.divide(asked.tasks)
    harness.check(named)
    shots = asked.asking.shots or 0
    tasks = load_tasks(own, shots, asked.asking.scoring, asked.asking.max_questions)
    code = load_code(asked.code, shots, asked.asking.max_questions)
    corpora = load_corpora(
        data, protocol.max_documents, protocol.max_characters, protocol.by_category, protocol.reading
    )
    labels = [*(task.label for task in tasks), *(problems.label for problems in code)]
    labels += [*map(harness.label, named), *(corpus.label for corpus in corpora)]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise UsageError(f"--data, --tasks and --code have {twice} twice; give LABEL=PATH.")
    if code:
        Sandbox(asked.programs.code_seconds).check()
    from llmforge.evaluate.bits import measure  # torch, and only once the texts are known to be readable
    from llmforge.evaluate.models import load_model
    from llmforge.weights.architecture import positions

    results: Results = {}
    batch = _batch(corpora, protocol)
    for name, directory in zip(_names(models), models, strict=True):
        loaded = load_model(directory, protocol.dtype, trust_remote_code, protocol.memory, *batch)
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
        for label, answer in _measures(loaded, asked, tasks, named, code, protocol.batch_tokens):
            with progress(f"{name}, {label}", None, "answers") as advance:
                results[name][label] = answer(advance)
        loaded.tell_memory()
        del loaded
        gc.collect()
    return results


def _batch(corpora: Sequence[Corpus], protocol: ProtocolOptions) -> tuple[int, int]:
    """(tokens, scored ones) of a batch at most: a document has no more tokens than bytes, and the one before it."""
    longest = max((len(text.encode()) for corpus in corpora for text in corpus.documents), default=0) + 1
    tokens = max(protocol.batch_tokens, min(longest, protocol.max_length))
    return tokens, tokens if corpora else SCORED


def _measures(
    loaded: Any,
    asked: Asked,
    tasks: Sequence[Task],
    named: Sequence[str],
    code: Sequence[CodeTask],
    batch_tokens: int,
) -> Iterator[tuple[str, Callable[[Callable[..., None]], dict[str, Any]]]]:
    """(label, what measures it) of everything that one model is asked."""
    from llmforge.evaluate.code.measure import measure_code
    from llmforge.evaluate.tasks.likelihood import Scorer
    from llmforge.evaluate.tasks.measure import measure_task

    scorer, asking = Scorer(loaded, batch_tokens), asked.asking
    for task in tasks:
        yield task.label, partial(measure_task, loaded, task, scorer)
    for name in named:
        how = (asking.shots, asking.max_questions, scorer)
        yield harness.label(name), partial(harness.measure_harness, loaded, name, *how)
    for problems in code:
        yield problems.label, partial(measure_code, loaded, problems, asked.programs, batch_tokens)


def compare_to_file(
    models: Sequence[Path],
    data: Sequence[str],
    protocol: ProtocolOptions,
    output: Path,
    overwrite: bool,
    trust_remote_code: bool = False,
    asked: Asked | None = None,
) -> Finished:
    """`compare` as a step that writes its tables to `output` (.json, .md, .html); the results are its metrics."""
    if output.suffix not in SUFFIXES:
        raise UsageError(f"--output {output}: the file name must end in {', '.join(SUFFIXES)}.")
    asked = asked or Asked()
    own, named = harness.divide(asked.tasks)
    given, files, problems = labeled(data), labeled(own), labeled(asked.code)

    def build(path: Path) -> Outcome:
        results = compare(models, data, protocol, trust_remote_code, asked)
        path.write_text(WRITERS[path.suffix](results), encoding="utf-8")
        return Outcome(metrics=results)

    labels = [label or own_label(path) for label, path in given]
    arguments = {**protocol.arguments(), "models": _names(models), "labels": labels}
    if own or named:  # a comparison without them is the one that earlier versions made
        arguments["tasks"] = [
            *(label or own_label(path) for label, path in files),
            *map(harness.label, named),
        ]
    if own or named or problems:
        arguments.update(asked.asking.arguments())
    if named:
        arguments |= {"lm_eval": harness.version(), "shots": asked.asking.shots}
    if problems:
        arguments["code"] = [label or own_label(path) for label, path in problems]
        arguments.update(asked.programs.arguments())
    paths = [path for _, path in (*given, *files, *problems)] + harness.files(named)
    return run_step(
        Step("evaluate", output, arguments, [*models, *paths], overwrite=overwrite, single_file=True), build
    )


def markdown(results: Results) -> str:
    """The tables in Markdown."""
    return "\n".join(report.table(*one) for one in tables(results))


def as_json(results: Results) -> str:
    return json.dumps(results, ensure_ascii=False, indent=2) + "\n"


def html(results: Results) -> str:
    """The tables as a page."""
    return page.page("Models compared", [Table(*one) for one in tables(results)])


def _names(directories: Sequence[Path]) -> list[str]:
    """The directories' own names (of the Hub: their repositories') where they differ, else the whole paths."""
    names = [title(directory) for directory in directories]
    return names if len(set(names)) == len(names) else [str(directory) for directory in directories]


WRITERS = {".json": as_json, ".md": markdown, ".html": html}
SUFFIXES = tuple(WRITERS)
