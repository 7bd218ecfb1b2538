# ruff: noqa: RUF009 - `option` makes dataclass fields
"""The options of verify."""

from dataclasses import dataclass
from pathlib import Path

from llmforge.options import Options, option


@dataclass(frozen=True)
class VerifyOptions(Options):
    """Outputs, or directories that hold some."""

    outputs: list[Path] = option(
        "Outputs of any command, or directories that contain some.",
        positional=True,
        commas=False,
        metavar="PATH...",
    )
