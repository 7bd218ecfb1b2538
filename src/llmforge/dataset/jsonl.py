"""A dataset's rows as JSON lines, Colossal-LLaMA's `--data-jsonl-output-dir`: `part-00000.jsonl` and so on."""

import json
from pathlib import Path

import pyarrow as pa

from llmforge.console import progress
from llmforge.dataset.options import PrepareOptions
from llmforge.dataset.workers import LocalRun, available_cores
from llmforge.dataset.writing import DATA_FILE
from llmforge.steps import Finished, Outcome, Step, check_apart, find_finished, run_step

STEP = "prepare-data-jsonl"


def write_jsonl(dataset: Path, output: Path, *, workers: int = 0, overwrite: bool = False) -> Finished:
    """Writes each part of `dataset` (an output of prepare-data) as one file of `output`, a row a line."""
    parts = sorted(dataset.glob("part-*")) or sorted((dataset / "arrow").glob("part-*"))

    def build(directory: Path) -> Outcome:
        tasks = [(part, directory / f"{part.name}.jsonl") for part in parts]
        small = sum((part / DATA_FILE).stat().st_size for part in parts) < 16 << 20
        with (
            LocalRun(workers or (1 if small else available_cores())) as run_all,
            progress("jsonl", len(parts), "parts") as advance,
        ):
            rows = 0
            for count in run_all(write_part_as_jsonl, tasks):
                rows += count
                advance(1)
        return Outcome(metrics={"rows": rows})

    return run_step(Step(STEP, output, {}, [dataset], overwrite), build)


def check_place(options: PrepareOptions, output: Path) -> None:
    """Raises `UserError` where the rows of a preparation cannot go to `output`; to be called before it begins."""
    check_apart(output, [*options.data, options.tokenizer, options.output], STEP)
    # Whether the rows there are those of this dataset is seen when there is one.
    find_finished(Step(STEP, output, {}, overwrite=True))


def write_part_as_jsonl(part: Path, target: Path) -> int:
    """Writes one part; returns the number of rows."""
    rows = 0
    with (
        target.open("w", encoding="utf-8") as file,
        pa.memory_map(str(part / DATA_FILE)) as source,
        pa.ipc.open_stream(source) as stream,
    ):
        for batch in stream:
            for begin in range(0, len(batch), 64):
                for row in batch.slice(begin, 64).to_pylist():
                    file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
            rows += len(batch)
    return rows
