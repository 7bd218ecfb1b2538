"""`llmforge generate`."""

import sys

from llmforge.cli.command import example
from llmforge.console import show, show_json, writing_results
from llmforge.evaluate.options import GenerateOptions
from llmforge.options import Result


@example('llmforge generate --model trained --prompt "中国的首都是"')
def generate(options: GenerateOptions, result: Result) -> None:
    """Continue a prompt."""
    from llmforge import hub
    from llmforge.evaluate.generation import generate_text, generate_to_file

    directory, prompt = hub.local(options.model), options.prompt
    if options.output is None:
        text = generate_text(directory, prompt, options.sampling, options.trust_remote_code)
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
    if result.json:
        show_json({"prompt": prompt, "text": text})
    elif sys.stdout.isatty():
        show(text)
    else:
        with writing_results():
            print(text)  # to a file or a pipe as it is
