"""`llmforge generate`."""

import json
import sys
from pathlib import Path

from llmforge.cli.command import example
from llmforge.cli.results import show_finished
from llmforge.console import printable, show, show_json, writing_results
from llmforge.evaluate.options import GenerateOptions
from llmforge.options import Result


@example('llmforge generate --model trained --prompt "中国的首都是"')
def generate(options: GenerateOptions, result: Result) -> None:
    """Continue a prompt, or every prompt of a file.

    On a terminal the text appears while it is made. Of a file of prompts the records are printed with the field
    `completion`, one JSON object a line.
    """
    from llmforge import hub

    directory = hub.local(options.model)
    if options.prompts is not None:
        _all(options, directory, options.prompts, result.json)
    else:
        _one(options, directory, options.prompt or "", result.json)


def _one(options: GenerateOptions, directory: Path, prompt: str, as_json: bool) -> None:
    from llmforge.evaluate.prompts import generate_text, generate_to_file

    streams = sys.stdout.isatty() and not as_json and options.output is None
    if options.output is None:
        write = write_part if streams else None
        text = generate_text(directory, prompt, options.sampling, options.trust_remote_code, write)
    else:
        finished = generate_to_file(
            directory,
            prompt,
            options.sampling,
            options.output,
            options.overwrite,
            options.trust_remote_code,
        )
        text = finished.manifest.metrics["text"]
    if as_json:
        show_json({"prompt": prompt, "text": text})
    elif streams:
        write_part("\n")
    elif sys.stdout.isatty():
        show(text)
    else:
        with writing_results():
            print(text)  # to a file or a pipe as it is


def _all(options: GenerateOptions, directory: Path, prompts: Path, as_json: bool) -> None:
    from llmforge.evaluate.prompts import generate_all, generate_all_to_file

    if options.output is None:
        records = generate_all(
            directory, prompts, options.sampling, options.batch_tokens, options.trust_remote_code
        )
        if as_json:
            show_json(list(records))
            return
        for record in records:
            show(json.dumps(record, ensure_ascii=False, default=str))
        return
    finished = generate_all_to_file(
        directory,
        prompts,
        options.sampling,
        options.batch_tokens,
        options.output,
        options.overwrite,
        options.trust_remote_code,
    )
    show_finished(finished, as_json)


def write_part(text: str) -> None:
    """Shows a part of a text on the terminal at once."""
    with writing_results():
        print(printable(text), end="", flush=True)
