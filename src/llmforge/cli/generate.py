"""`llmforge generate`."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmforge.cli.options import AsJson, Debug, Seed, example


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
    seed: Seed = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Continue a prompt."""
    from llmforge.evaluate.generation import generate as continue_prompt
    from llmforge.evaluate.models import load_model

    text = continue_prompt(load_model(model, dtype), prompt, max_new_tokens, temperature, top_p, seed)
    print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False) if as_json else text)
