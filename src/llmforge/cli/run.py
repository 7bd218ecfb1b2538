"""`llmforge run`."""

from pathlib import Path
from typing import Annotated

import typer

from llmforge.cli.options import Debug, example


@example(
    "llmforge run examples/smollm2-zh/recipe.yaml --set inputs=~/.cache/llmforge/inputs --set output=demo"
)
def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of a variable, over the recipe's own.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands and run nothing.")] = False,
    debug: Debug = False,
) -> None:
    """Run every step of a recipe, skipping what is done.

    Each step is printed as the command that can be run by hand, and runs as that command.
    """
    from llmforge.recipes.recipe import read_recipe, run_recipe

    run_recipe(read_recipe(recipe, set_ or []), dry_run, debug)
