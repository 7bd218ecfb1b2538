"""`llmforge report`: gathers, renders, writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmforge.errors import UserError
from llmforge.overview.course import course, events, figures
from llmforge.overview.find import Found, find
from llmforge.overview.options import ReportOptions
from llmforge.overview.origin import origin
from llmforge.overview.preferences import measured, preferences
from llmforge.overview.results import comparisons, samples
from llmforge.overview.training import Training, holds_training, read_training
from llmforge.report import html, markdown
from llmforge.report.blocks import Block, Heading, Paragraph
from llmforge.steps import check_report, manifest_path, write_report

COMMAND = "report"


def report(options: ReportOptions) -> dict[str, Any]:
    """Writes the report, and returns what is in it as values: `trainings` (figures by name), `comparisons`, `texts`."""
    output = options.output
    check_report(output, COMMAND, "--output")
    _refuse_inside(output)
    found = find(options.paths)
    trainings = _named([read_training(path) for path in found.trainings])
    page = {".html": html.page, ".md": markdown.page}[output.suffix]
    title = _title(list(trainings) or [path.name for path in options.paths])
    write_report(output, page(title, _blocks(found, trainings)), COMMAND, "--output")
    return {
        "output": output,
        "trainings": {
            name: {"path": one.path, **figures(one), **measured(one)} for name, one in trainings.items()
        },
        "comparisons": len(found.tables),
        "texts": len(found.texts),
    }


def _blocks(found: Found, trainings: dict[str, Training]) -> list[Block]:
    blocks: list[Block] = []
    preferred = {name: one for name, one in trainings.items() if one.preferences}
    if others := {name: one for name, one in trainings.items() if not one.preferences}:
        blocks += course(others)
    at = next((number for number, block in enumerate(blocks) if block == Heading("Curves")), len(blocks))
    blocks[at:at] = origin(trainings.values())
    if preferred:
        blocks += preferences(preferred)
    if trainings:
        blocks += [Heading("Events"), *events(trainings)]
    blocks += comparisons(found.tables)
    blocks += samples(found.texts)
    if found.problems:
        blocks += [Heading("Not read"), *map(Paragraph, found.problems)]
    return blocks


def _refuse_inside(output: Path) -> None:
    """Raises `UserError` where the report would lie in an output of llmforge: that would no longer be as it was made."""
    above = output.resolve().parent
    for directory in (above, *above.parents):
        if holds_training(directory) or manifest_path(directory).is_file():
            raise UserError(
                f"--output {output} would be inside {directory}, an output of llmforge; choose another place."
            )


def _named(trainings: Sequence[Training]) -> dict[str, Training]:
    """By the names of their directories where these differ, else by the whole paths."""
    names = [one.path.resolve().name for one in trainings]
    unique = len(set(names)) == len(names)
    return {name if unique else str(one.path): one for name, one in zip(names, trainings, strict=True)}


def _title(names: Sequence[str]) -> str:
    return f"Report of {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
