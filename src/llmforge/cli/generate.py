"""`llmforge generate`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmforge.cli.options import AsJson, Debug, Overwrite, Seed, TrustRemoteCode, example
from llmforge.console import show, show_json, writing_results
from llmforge.errors import UsageError

COLDEST, HOTTEST = 1e-4, 1e4  # beyond them the likeliest token, or any, is taken, and further on float32 ends


@example('llmforge generate --model models/export --prompt "中国的首都是"')
def generate(
    model: Annotated[Path, typer.Option(help="The model directory.")],
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="At most so many tokens.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1, help="Sample from the likeliest tokens of this mass.")
    ] = 1.0,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the weights.")
    ] = "float32",
    output: Annotated[
        Path | None, typer.Option(help="Write the text here too, and do nothing if it is there.")
    ] = None,
    seed: Seed = 0,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Continue a prompt."""
    from llmforge import hub
    from llmforge.evaluate.generation import Sampling, generate_text, generate_to_file

    if temperature and not COLDEST <= temperature <= HOTTEST:  # nan neither
        raise UsageError(
            f"--temperature {temperature} is neither 0 nor from {COLDEST:g} to {HOTTEST:g}; 0.7 to 1 is usual."
        )
    sampling = Sampling(max_new_tokens, temperature, top_p, seed, dtype)
    directory = hub.local(model)
    if output is None:
        text = generate_text(directory, prompt, sampling, trust_remote_code)
    else:
        finished = generate_to_file(directory, prompt, sampling, output, overwrite, trust_remote_code)
        text = finished.manifest.metrics["text"]
    if as_json:
        show_json({"prompt": prompt, "text": text})
    elif sys.stdout.isatty():
        show(text)
    else:
        with writing_results():
            print(text)  # to a file or a pipe as it is
