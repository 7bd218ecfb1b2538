# ruff: noqa: RUF009 - `option` makes dataclass fields
"""The options of report."""

from dataclasses import dataclass
from pathlib import Path

from llmforge.errors import UsageError
from llmforge.options import Options, option

SUFFIXES = (".html", ".md")


@dataclass(frozen=True)
class ReportOptions(Options):
    """`paths`: outputs of train, evaluate and generate, or directories that contain some."""

    paths: list[Path] = option(
        "Directories of trainings, finished or not; tables of evaluate and texts of generate; or directories that contain "
        "some, such as that of a recipe's outputs.",
        positional=True,
        commas=False,
        metavar="DIR...",
        reads="result",
    )
    output: Path = option("The report to write, .html or .md.", writes="page")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output.suffix not in SUFFIXES:
            raise UsageError(f"--output {self.output}: the file name must end in {' or '.join(SUFFIXES)}.")
