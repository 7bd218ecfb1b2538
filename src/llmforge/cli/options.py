"""Options that commands share, and the command class that reads flags as the ancestor's users write them."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from llmforge.console import show, show_json
from llmforge.errors import UsageError

if TYPE_CHECKING:
    from llmforge.corpus import ReadOptions

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that llmforge made before.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python files that lie beside a model (auto_map). They can do anything that you can.",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything that is left to chance.")]
TokenizerScheme = Annotated[
    str | None,
    typer.Option(
        help="What a file of tiktoken ranks is, where it cannot be told: llama3, glm4, qwen2, o200k_harmony, ..."
    ),
]
TEXTS = "Texts"
TextField = Annotated[
    str | None,
    typer.Option(
        help="The field of a record's text, such as meta.body. Default: target, else text.",
        rich_help_panel=TEXTS,
    ),
]
SourceField = Annotated[
    str,
    typer.Option(
        help='The field of text before it that is not trained on; "" is none.', rich_help_panel=TEXTS
    ),
]
CategoryField = Annotated[
    str,
    typer.Option(
        help='The field of the category; a document without it has that of its directory. "" is none.',
        rich_help_panel=TEXTS,
    ),
]
Lines = Annotated[
    bool,
    typer.Option(
        "--lines", help="A line of .txt and .md is a document, not the file.", rich_help_panel=TEXTS
    ),
]
MaxDocumentBytes = Annotated[
    str,
    typer.Option(
        help="Reject documents, and lines of JSON, that are longer: 256M, 1G.", rich_help_panel=TEXTS
    ),
]
StoppedExitCode = Annotated[
    int,
    typer.Option(
        min=0,
        max=255,
        help="Exit code where a signal or --time-limit stopped the training before its last step.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def debug_wanted(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for tracebacks; read where parsing itself may have failed."""
    return "--debug" in arguments


class ForgeCommand(TyperCommand):
    """A command whose options may be spelled with underscores, and whose repeatable options take several words.

    `--dataset a b c` means `--dataset a --dataset b --dataset c`: such an option takes every word up to the next
    option. This is how the ancestor's scripts pass their bash arrays.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        parameters = self.get_params(ctx)
        repeatable = {
            name
            for parameter in parameters
            if getattr(parameter, "multiple", False)
            for name in parameter.opts
        }
        args = repeat_flags([dashed(word) for word in args], repeatable)
        given = {word.partition("=")[0] for word in args if word.startswith("-")}
        for parameter in parameters:
            if len(spellings := [name for name in parameter.opts if name in given]) > 1:
                raise UsageError(f"{' and '.join(spellings)} are the same flag; give one of them.")
        return super().parse_args(ctx, args)


def dashed(word: str) -> str:
    """`--a_b=c_d` as `--a-b=c_d`; anything but a long option as it is."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def repeat_flags(words: Sequence[str], repeatable: set[str]) -> list[str]:
    """Writes each flag of `repeatable` again before every further word that follows it."""
    result: list[str] = []
    flag, values = "", 0
    for position, word in enumerate(words):
        if word == "--":
            return [*result, *words[position:]]
        if word.startswith("-") and len(word) > 1:
            flag, values = (word, 0) if word in repeatable else ("", 0)
        elif flag:
            values += 1
            if values > 1:
                result.append(flag)
        result.append(word)
    return result


def example(*lines: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Ends the help of a command with a real example of its use, `lines` being one command."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        command.__dict__["example"] = "Example:\n\n" + " \\\n\n".join(lines)
        return command

    return add


def show_finished(finished: Any, as_json: bool, summary: str = "") -> None:
    """Prints the end of a step: where the output is, and `summary`, or the manifest as JSON."""
    if as_json:
        from dataclasses import asdict

        state = "already done" if finished.skipped else "done"
        output = {"output": finished.output, "state": state, "skipped": finished.skipped}
        show_json({**output, **asdict(finished.manifest)})
        return
    state = "already done, nothing changed" if finished.skipped else "done"
    show(f"{finished.manifest.step}: {state}: {finished.output}")
    if summary:
        show(summary)
    sys.stdout.flush()


def words(values: Sequence[str]) -> list[str]:
    """The items of options that take several words, comma-separated words, or both.

    A word is not divided where it is the path of something as a whole, or behind `LABEL=`.
    """
    found: list[str] = []
    for value in values:
        if value and _is_path(value):
            found.append(value)
        else:
            found += [item for item in value.split(",") if item]
    return found


def _is_path(word: str) -> bool:
    return any(os.path.lexists(os.path.expanduser(path)) for path in (word, word.partition("=")[2]) if path)


def paths(values: Sequence[str]) -> list[Path]:
    """`words` as paths."""
    return [Path(item).expanduser() for item in words(values)]


def texts(values: Sequence[str]) -> list[Path]:
    """`words` as paths of texts; a data set that is named as on the Hugging Face Hub is fetched first."""
    return [_text(item) for item in words(values)]


def _text(word: str) -> Path:
    path = Path(word).expanduser()
    if os.path.lexists(path):
        return path
    from llmforge.corpus.hub import local_path  # only now: its imports take time

    return local_path(word)


def labelled_texts(values: Sequence[str]) -> list[str]:
    """The same for `[LABEL=]PATH` words."""
    from llmforge.corpus import labelled
    from llmforge.corpus.hub import local_path, own_name

    found = []
    for label, path in labelled(words(values)):
        local = local_path(str(path))
        label = label or (own_name(str(path)) if local != path else None)
        found.append(f"{label}={local}" if label else str(local))
    return found


def reading(
    text_field: str | None, source_field: str, category_field: str, lines: bool, max_document_bytes: str
) -> "ReadOptions":
    """How texts are read, from the options that all commands share which read some."""
    from llmforge.corpus.options import read_options

    return read_options(text_field, source_field, category_field, lines, max_document_bytes)
