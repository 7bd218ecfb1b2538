"""The Typer app: every command in pipeline order, each imported only when it is run or asked for help."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from llmforge.recipes.commands import COMMANDS as LEAVES
from llmforge.recipes.commands import GROUPS

# name: (panel, one line of help). The command `a-b` is the function `a_b` of llmforge/cli/a_b.py; a group has functions
# by the second words of its commands.
COMMANDS: dict[str, tuple[str, str]] = {
    name.split()[0]: (command.panel, GROUPS.get(name.split()[0], command.line))
    for name, command in LEAVES.items()
}


class Pipeline(TyperGroup):
    """Lists commands from the table above; imports one only when it is resolved by name."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(cmd_name, callback=None, help=COMMANDS[cmd_name][1])

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for panel in dict.fromkeys(panel for panel, _ in COMMANDS.values()):
            with formatter.section(panel):
                formatter.write_dl([(name, line) for name, (its, line) in COMMANDS.items() if its == panel])

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:  # None would be converted to a bool by pydantic, whose import costs 60 ms
            option.default = False
        return option

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        args = [args[0].replace("_", "-"), *args[1:]] if args else args
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name else command, rest


def functions_of(name: str) -> dict[str, Callable[..., None]]:
    """The functions of a command or a group, by the whole names of their commands."""
    module = import_module(f"llmforge.cli.{name.replace('-', '_')}")
    leaves = [leaf for leaf in LEAVES if leaf.split()[0] == name]
    return {leaf: getattr(module, leaf.split()[-1].replace("-", "_")) for leaf in leaves}


def load_command(name: str) -> Any:
    """The Typer command or group `name`, its file imported."""
    from llmforge.cli.command import example_text, make_command

    functions = functions_of(name)
    if name not in GROUPS:
        return make_command(name, functions[name])
    first = next(iter(functions.values()))
    return TyperGroup(
        name=name,
        commands={leaf.split()[1]: make_command(leaf, function) for leaf, function in functions.items()},
        help=GROUPS[name],
        epilog=f"\b\nExample:\n{example_text(first)}",
        no_args_is_help=True,
        rich_markup_mode=None,
    )


app = typer.Typer(
    cls=Pipeline,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from llmforge import __version__

        typer.echo(f"llmforge {__version__}")
        raise typer.Exit


@app.callback()
def _llmforge(
    version: bool = typer.Option(
        False, "--version", help="Print the version.", callback=_show_version, is_eager=True
    ),
) -> None:
    """Adapt an existing language model to a new language or domain.

    Each command is one step: it reads the outputs of the steps before it and writes its own.
    """
