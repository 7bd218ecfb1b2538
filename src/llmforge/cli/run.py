"""`llmforge run`."""

from llmforge.cli.command import example
from llmforge.options import Debug
from llmforge.recipes.options import RunOptions


@example(
    "llmforge run examples/smollm2-zh/recipe.yaml --set inputs=~/.cache/llmforge/inputs --set output=demo"
)
def run(options: RunOptions, besides: Debug) -> None:
    """Run every step of a recipe, skipping what is done.

    Each step is printed as the command that can be run by hand, and runs as that command.
    """
    from llmforge.cli.compat import SPELLINGS
    from llmforge.recipes.recipe import read_recipe
    from llmforge.recipes.running import choose, run_recipe, show_steps

    if options.recipe is None:
        from llmforge.console import show_json
        from llmforge.recipes.schema import recipe_schema

        show_json(recipe_schema(SPELLINGS))
        return
    steps = read_recipe(options.recipe, options.set, SPELLINGS)
    chosen = choose(steps, options.from_, options.only)
    if options.dry_run:
        show_steps(chosen, len(steps))
    else:
        run_recipe(chosen, len(steps), besides.debug)
