"""What commands share around the one function they call: texts fetched from the Hub first, the end of a step shown."""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmforge.console import show, show_json


def debug_wanted(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for tracebacks; read where parsing itself may have failed."""
    return "--debug" in arguments


def show_finished(finished: Any, as_json: bool, summary: str = "") -> None:
    """Prints the end of a step: where the output is, and `summary`, or the manifest as JSON."""
    if as_json:
        state = "already done" if finished.skipped else "done"
        output = {"output": finished.output, "state": state, "skipped": finished.skipped}
        show_json({**output, **asdict(finished.manifest)})
        return
    state = "already done, nothing changed" if finished.skipped else "done"
    show(f"{finished.manifest.step}: {state}: {finished.output}")
    if summary:
        show(summary)
    sys.stdout.flush()


def texts(values: Iterable[str | Path]) -> list[Path]:
    """Paths of texts; a dataset that is named as on the Hugging Face Hub is fetched first."""
    return [_text(str(value)) for value in values]


def _text(word: str) -> Path:
    path = Path(word).expanduser()
    if os.path.lexists(path):
        return path
    from llmforge.corpus.hub import local_path  # only now: its imports take time

    return local_path(word)


def labeled_texts(values: Sequence[str]) -> list[str]:
    """The same for `[LABEL=]PATH` words."""
    from llmforge.corpus import labeled
    from llmforge.corpus.hub import local_path, own_name

    found = []
    for label, path in labeled(values):
        local = local_path(str(path))
        label = label or (own_name(str(path)) if local != path else None)
        found.append(f"{label}={local}" if label else str(local))
    return found
