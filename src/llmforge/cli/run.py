"""`llmforge run`."""

from llmforge.cli.command import example
from llmforge.options import Debug
from llmforge.recipes.options import RunOptions


@example(
    "llmforge run examples/smollm2-zh/recipe.yaml --set inputs=$HOME/.cache/llmforge/inputs --set output=demo"
)
def run(options: RunOptions, besides: Debug) -> None:
    """Run the steps of a recipe; finished steps are skipped.

    Each step is printed as a command, and runs as this command.
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
