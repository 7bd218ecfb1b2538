"""Continuing one prompt or a file of them."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.console import progress
from llmforge.corpus.sources import printable
from llmforge.errors import UsageError, UserError
from llmforge.evaluate.options import SamplingOptions
from llmforge.steps import Finished, Outcome, Step, run_step

FIELD, COMPLETION = "prompt", "completion"


@dataclass(frozen=True)
class Prompt:
    """A prompt, the record that it stands in, and its place for messages."""

    text: str
    record: dict[str, Any]
    place: str


def generate_text(
    directory: Path,
    prompt: str,
    sampling: SamplingOptions,
    trust_remote_code: bool = False,
    write: Callable[[str], None] | None = None,
) -> str:
    """`prompt` and what the model in `directory` says after it; `write` gets the parts of it as they are made.

    Special tokens that the prompt spells are text, as everywhere.
    """
    from llmforge.evaluate.generation import check_positions, continue_ids, text_after
    from llmforge.evaluate.models import load_model
    from llmforge.evaluate.streaming import TextStream, visible

    tokens = len(prompt.encode()) + 1 + sampling.max_new_tokens
    loaded = load_model(directory, sampling.dtype, trust_remote_code, sampling.memory, tokens)
    ids = [*loaded.start_ids, *loaded.tokenizer.encode([prompt])[0].tolist()]
    check_positions(loaded, len(ids), sampling.max_new_tokens)
    if write is None:
        (new,) = continue_ids(loaded, [ids], sampling)
        loaded.tell_memory()
        return prompt + visible(text_after(loaded, ids, new), sampling.stop)
    write(prompt)
    stream = TextStream(loaded, ids, sampling.stop, write)
    (new,) = continue_ids(loaded, [ids], sampling, follow=stream.put)
    text = prompt + stream.finish()
    loaded.tell_memory()
    return text


def generate_to_file(
    directory: Path,
    prompt: str,
    sampling: SamplingOptions,
    output: Path,
    overwrite: bool,
    trust_remote_code: bool = False,
) -> Finished:
    """`generate_text` as a step that writes to `output`; the text is its metric."""

    def build(path: Path) -> Outcome:
        text = generate_text(directory, prompt, sampling, trust_remote_code)
        path.write_text(text + "\n", encoding="utf-8")
        return Outcome(metrics={"text": text})

    arguments = {**sampling.arguments(), "prompt": prompt}
    return run_step(
        Step("generate", output, arguments, [directory], overwrite=overwrite, single_file=True), build
    )


def generate_all(
    directory: Path,
    file: Path,
    sampling: SamplingOptions,
    batch_tokens: int,
    trust_remote_code: bool = False,
) -> Iterator[dict[str, Any]]:
    """The records of a file of prompts, in its order, each with what the model says in `completion`.

    Prompts are computed in batches of like length. What is drawn for one does not depend on the others: prompt n has
    the seed `sampling.seed + n`.
    """
    prompts = read_prompts(file)
    from llmforge.evaluate.generation import check_positions, continue_ids, text_after
    from llmforge.evaluate.models import load_model
    from llmforge.evaluate.streaming import visible

    longest = max(len(one.text.encode()) for one in prompts) + 1 + sampling.max_new_tokens
    tokens = max(batch_tokens, longest)
    rows = max(1, batch_tokens // sampling.max_new_tokens)
    loaded = load_model(directory, sampling.dtype, trust_remote_code, sampling.memory, tokens, rows)
    flat, offsets = loaded.tokenizer.encode([one.text for one in prompts])
    ids = [[*loaded.start_ids, *flat[offsets[i] : offsets[i + 1]].tolist()] for i in range(len(prompts))]
    for one, prompt in zip(ids, prompts, strict=True):
        check_positions(loaded, len(one), sampling.max_new_tokens, f"{prompt.place}: the prompt")
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
    found: dict[int, str] = {}
    with progress("generate", len(ids), "prompts") as advance:
        while order:
            count = max(1, batch_tokens // (len(ids[order[0]]) + sampling.max_new_tokens))
            batch, order = order[:count], order[count:]
            seeds = [sampling.seed + i for i in batch]
            for i, new in zip(
                batch, continue_ids(loaded, [ids[i] for i in batch], sampling, seeds), strict=True
            ):
                found[i] = visible(text_after(loaded, ids[i], new), sampling.stop)
            advance(len(batch))
    loaded.tell_memory()
    for i, prompt in enumerate(prompts):
        yield {**prompt.record, COMPLETION: found[i]}


def generate_all_to_file(
    directory: Path,
    file: Path,
    sampling: SamplingOptions,
    batch_tokens: int,
    output: Path,
    overwrite: bool,
    trust_remote_code: bool = False,
) -> Finished:
    """`generate_all` as a step that writes the records to `output`, one JSON object a line."""
    if output.suffix != ".jsonl":
        raise UsageError(f"--output {output}: with --prompts the name must end in .jsonl.")

    def build(path: Path) -> Outcome:
        records = list(generate_all(directory, file, sampling, batch_tokens, trust_remote_code))
        lines = (json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in records)
        path.write_text("".join(lines), encoding="utf-8")
        return Outcome(metrics={"prompts": len(records)})

    step = Step(
        "generate", output, sampling.arguments(), [directory, file], overwrite=overwrite, single_file=True
    )
    return run_step(step, build)


def read_prompts(file: Path) -> list[Prompt]:
    """The prompts of a .jsonl file (the field `prompt` of each record) or of a .txt file (each line that is not empty)."""
    from llmforge.evaluate.tasks.records import SUFFIXES, records

    if not file.is_file():
        raise UserError(f"--prompts {printable(file)} is not a file.")
    if file.suffix == ".txt":
        found = [
            Prompt(line, {FIELD: line}, f"{printable(file)}, line {number}")
            for number, line in enumerate(_lines(file), start=1)
            if line.strip()
        ]
    elif file.suffix in SUFFIXES:
        found = [Prompt(_prompt(record, place), record, place) for place, record in records(file)]
    else:
        raise UserError(f"--prompts {printable(file)}: the name must end in .txt, {', '.join(SUFFIXES)}.")
    if not found:
        raise UserError(f"--prompts {printable(file)}: there is no prompt in it.")
    return found


def _prompt(record: dict[Any, Any], place: str) -> str:
    text = record.get(FIELD)
    if not isinstance(text, str) or not text:
        raise UserError(f"{place}: there is no text in the field '{FIELD}'.")
    return text


def _lines(file: Path) -> Sequence[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"--prompts {printable(file)}: invalid UTF-8.") from None
