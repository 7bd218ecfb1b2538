"""What a step says while it works: to standard error, so that standard output holds results alone."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PLAIN_LINE_SECONDS = 10.0


def say(text: str) -> None:
    """One line for the user."""
    print(text, file=sys.stderr, flush=True)


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
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn(
                "{task.completed:,.0f}/{task.total:,.0f} " + unit
                if total is not None
                else "{task.completed:,.0f} " + unit
            ),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total, note="")
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
