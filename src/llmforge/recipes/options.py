# ruff: noqa: RUF009 - `option` makes dataclass fields
"""The options of run."""

from dataclasses import dataclass
from pathlib import Path

from llmforge.errors import UsageError
from llmforge.options import Options, option


@dataclass(frozen=True)
class RunOptions(Options):
    """`set` are NAME=VALUE of variables; `from_step` and `only` are numbers of steps or names of their commands."""

    recipe: Path | None = option("The recipe, a YAML file.", None, positional=True, metavar="RECIPE")
    set: list[str] = option("Set a variable of the recipe: NAME=VALUE.", [], commas=False)
    from_: str | None = option("Start at this step, a number or the name of its command.", None)
    only: str | None = option("Run only this step, a number or the name of its command.", None)
    dry_run: bool = option("Show the steps as a table and run nothing.", False)
    schema: bool = option("Print the JSON schema of recipes.", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.recipe) == self.schema:
            raise UsageError("give a RECIPE, or --schema.")
        if self.from_ and self.only:
            raise UsageError("--from and --only contradict each other; give one of them.")
