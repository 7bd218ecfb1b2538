"""`llmforge run`."""
from pathlib import Path
from typing import Annotated
import typer
from llmforge.cli.options import Debug, example

@example("llmforge run examples/smollm2-zh/recipe.yaml")
def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    corpus: Annotated[list[str], typer.Option(help="x")] = [],
    debug: Debug = False,
) -> None:
    """Run every step of a recipe."""
    print(recipe, corpus)
    raise ValueError("x")
