"""The terminal: messages and progress on standard error, results on standard output."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

PLAIN_LINE_SECONDS = 10.0

# Control characters other than line feed and tab, as text that shows them. A document, a label or a file name must
# not reach the terminal as an escape sequence.
_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)
}


def open_streams() -> None:
    """Makes the standard streams safe to write to, before anything else is opened.

    A closed descriptor 0, 1 or 2 would be given to the next file that is opened, and what is printed would land in
    it. What the encoding of a stream cannot represent is written as an escape instead of ending the command.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):  # absent where a program captures the stream
            reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """`text` with control characters (but line feeds and tabs) written out, as `\\x1b`."""
    return text.translate(_CONTROLS)


def say(text: str) -> None:
    """Prints one message."""
    print(printable(text), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Prints a result."""
    with writing_results():
        print(printable(text))


def show_json(value: Any) -> None:
    """Prints a result as one JSON value (paths as strings), in ASCII where standard output cannot represent Unicode."""
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    with writing_results():
        print(json.dumps(value, ensure_ascii=not encoding.startswith("utf"), default=os.fspath))


def show_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Sequence[int] = (0,)
) -> None:
    """Prints a table; the columns that are not in `text_columns` are aligned to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for number, name in enumerate(header):
        table.add_column(Text(printable(name)), justify="left" if number in text_columns else "right")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    with writing_results():
        Console().print(table)


@contextmanager
def writing_results() -> Iterator[None]:
    """Lets a failure to write name standard output."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


def warn(text: str) -> None:
    """One line about something that the user should know and that stops nothing."""
    say(f"warning: {text}")


@contextmanager
def progress(label: str, total: float | None, unit: str) -> Iterator[Callable[..., None]]:
    """Yields `advance(amount, note="")`: a progress bar on a terminal, a plain line every ten seconds elsewhere.

    `total` is in `unit`s; None where the amount of work is not known. `note` is a short figure such as "3.1 MB/s".
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn(
                "{task.completed:,.0f}/{task.total:,.0f} " + unit
                if total is not None
                else "{task.completed:,.0f} " + unit,
                markup=False,
            ),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(printable(label), total=total, note="")
            yield lambda amount=1.0, note="": bar.update(task, advance=amount, note=note)
        return

    done, last = 0.0, time.monotonic()

    def advance(amount: float = 1.0, note: str = "") -> None:
        nonlocal done, last
        done += amount
        if time.monotonic() - last >= PLAIN_LINE_SECONDS:
            last = time.monotonic()
            of_total = f" of {total:,.0f}" if total is not None else ""
            say(f"{label}: {done:,.0f}{of_total} {unit}{'  ' + note if note else ''}")

    yield advance
