"""Commands made from option classes: their flags, their help, and what becomes of the words given."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperCommand

from llmforge.cli.arguments import canonical
from llmforge.cli.compat import refuse, spellings_of
from llmforge.options import Option, convert
from llmforge.recipes.commands import COMMANDS, build

Run = Callable[..., None]
RUN_BARE = frozenset({"doctor"})  # of the others nobody wants a run without a word


def example(*lines: str) -> Callable[[Run], Run]:
    """Ends the help of a command with an example of its use, `lines` being one command."""

    def add(command: Run) -> Run:
        command.__dict__["example"] = lines
        return command

    return add


def example_text(function: Run, indent: str = "  ") -> str:
    """The example of `function`, ready to be pasted."""
    lines = function.__dict__["example"]
    return f" \\\n{indent}  ".join([indent + lines[0], *lines[1:]])


class ForgeCommand(TyperCommand):
    """A command that knows its options as they are declared."""

    options: tuple[Option, ...] = ()
    spellings: Mapping[str, str] = {}
    example = ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = canonical(args, self.options, self.spellings)
        for word in words[: words.index("--") if "--" in words else None]:
            refuse(self.name or "", word.partition("=")[0])
        return super().parse_args(ctx, words)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Plain text, in the groups of the options: a table drawn by rich costs four times the start of the command."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        write_panels(formatter, self.options)
        formatter.write(f"\nExample:\n\n{self.example}\n")


def write_panels(formatter: Any, options: Sequence[Option]) -> None:
    """The options, positional ones first, each group under its name."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for one in sorted(options, key=lambda one: not one.positional):
        panel = "Arguments" if one.positional else one.panel
        panels.setdefault(panel, []).append((written(one), one.help_line()))
    panels.setdefault("Options", []).append(("--help", "Show this message and exit."))
    for panel, rows in panels.items():
        with formatter.section(panel):
            formatter.write_dl(rows, col_max=34)


def written(one: Option) -> str:
    """An option as help shows it: `--seed INTEGER`, `--verify / --no-verify`."""
    if one.positional:
        return one.value_name()
    return f"{one.flag} / --no-{one.key}" if one.is_switch else f"{one.flag} {one.value_name()}"


def make_command(name: str, function: Run) -> Any:
    """The Typer command `name` (of a group: both words) that calls `function` with its two option objects."""
    declared = COMMANDS[name].all_options()

    def callback(**words: Any) -> None:
        function(*read_words(name, words))

    parameters = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(one))
        for one in declared
    ]
    made: Any = callback
    made.__signature__ = inspect.Signature(parameters)
    made.__annotations__ = {one.name: one.annotation for one in parameters}
    made.__doc__ = function.__doc__
    typed = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    typed.command(name.split()[-1], cls=ForgeCommand, no_args_is_help=name not in RUN_BARE)(made)
    command: Any = typer.main.get_command(typed)
    command.options, command.spellings = declared, spellings_of(name)
    command.example = example_text(function)
    return command


def read_words(name: str, words: Mapping[str, Any]) -> tuple[Any, Any]:
    """The two option objects of command `name` from the words given, by field (None or nothing: not given)."""
    values = {}
    for one in COMMANDS[name].all_options():
        word = words[one.name]
        if word is not None and word != () and word != []:
            values[one.name] = convert(one, word, place_of(one))
    return build(name, values, spellings_of(name))


def place_of(one: Option) -> str:
    """How messages name an option of the command line."""
    return one.value_name() if one.positional else one.flag


def _annotation(one: Option) -> Any:
    """What Typer is told: words, and switches; the conversion is ours, the same for YAML files."""
    if one.positional:
        kind: Any = list[str] if one.is_list else str
        return Annotated[Optional[kind], typer.Argument(metavar=one.value_name(), show_default=False)]  # noqa: UP045
    if one.is_switch:
        return Annotated[Optional[bool], typer.Option(f"{one.flag}/--no-{one.key}", show_default=False)]  # noqa: UP045
    kind = list[str] if one.is_list else str
    return Annotated[Optional[kind], typer.Option(one.flag, show_default=False)]  # noqa: UP045
