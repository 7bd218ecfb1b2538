"""The Typer app: every command in pipeline order, each imported only when it is run or asked for help."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from llmforge.cli.options import ForgeCommand

TOKENIZER, MODEL, DATA, TRAINING, RESULT, ALL = (
    "1. Tokenizer",
    "2. Model",
    "3. Data",
    "4. Training",
    "5. Results",
    "All of it",
)
# name: (panel, one line of help). The command `a-b` is the function `a_b` of llmforge/cli/a_b.py; if that file has a
# GROUP instead, it is a group of commands, functions by name.
COMMANDS: dict[str, tuple[str, str]] = {
    "learn-pieces": (TOKENIZER, "Learn new pieces from a corpus by continuing the tokenizer's own BPE."),
    "init-tokenizer": (TOKENIZER, "Add pieces to a tokenizer, and prove that it still works."),
    "compare-tokenizers": (TOKENIZER, "Compare tokenizers on the same texts."),
    "init-model": (MODEL, "Grow a model's embeddings to a larger tokenizer."),
    "prepare-data": (DATA, "Tokenize a corpus and splice it into balanced buckets of full rows."),
    "inspect-data": (DATA, "Show what a dataset holds."),
    "train": (TRAINING, "Continue pretraining, in stages."),
    "plan": (TRAINING, "Estimate memory, steps and hours of a training before anything loads."),
    "launch": (TRAINING, "Start a training on every host of a hostfile, each checked first."),
    "doctor": (TRAINING, "Show what this machine can run, and what is missing."),
    "export": (RESULT, "Write a checkpoint as an ordinary Hugging Face model."),
    "evaluate": (RESULT, "Compare models in bits per byte on the same documents."),
    "generate": (RESULT, "Continue a prompt."),
    "delta": (RESULT, "Write a tuned model as its difference from its base, and back."),
    "verify": (RESULT, "Check that outputs are still what llmforge wrote, byte by byte."),
    "run": (ALL, "Run every step of a recipe, skipping what is done."),
}


RUN_BARE = frozenset({"doctor"})


class Pipeline(TyperGroup):
    """Lists commands from the table above; imports one only when it is resolved by name."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        panel, line = COMMANDS[cmd_name]
        return TyperCommand(cmd_name, callback=None, help=line, rich_help_panel=panel)

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:  # None would be converted to a bool by pydantic, whose import costs 60 ms
            option.default = False
        return option

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        args = [args[0].replace("_", "-"), *args[1:]] if args else args
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name else command, rest


def load_command(name: str) -> Any:
    """The Typer command `name`, its file imported."""
    module = import_module(f"llmforge.cli.{name.replace('-', '_')}")
    group: dict[str, Callable[..., None]] = getattr(module, "GROUP", {})
    commands = group or {name: getattr(module, name.replace("-", "_"))}
    examples = {command: function.__dict__["example"] for command, function in commands.items()}
    made = typer.Typer(
        help=COMMANDS[name][1],
        epilog=next(iter(examples.values())),
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        no_args_is_help=bool(group),
    )
    for command, function in commands.items():
        bare = name in RUN_BARE  # of the others nobody wants a run without a word
        made.command(command, cls=ForgeCommand, no_args_is_help=not bare, epilog=examples[command])(function)
    return typer.main.get_command(made)


app = typer.Typer(
    cls=Pipeline,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
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
    """Teach an existing language model a new language or domain.

    Each command is one step: it reads the output directory of the step before and writes its own.
    """
