"""`llmforge report`."""

from llmforge.cli.command import example
from llmforge.console import show, show_json
from llmforge.options import Result
from llmforge.overview.options import ReportOptions


@example("llmforge report stage-1 stage-2 models.md --output report.html")
def report(options: ReportOptions, result: Result) -> None:
    """Write a report of trainings: model and data, curves, cost, events, comparisons and samples.

    Trainings may be unfinished; several are shown side by side. HTML has charts, Markdown has their first, lowest, highest and last
    values.
    """
    from llmforge.overview.page import report as write

    found = write(options)
    if result.json:
        show_json(found)
        return
    counts = {
        "training": len(found["trainings"]),
        "comparison": found["comparisons"],
        "text": found["texts"],
    }
    parts = [f"{count:,} {name}{'s' if count > 1 else ''}" for name, count in counts.items() if count]
    show(f"report: done: {options.output}\n{', '.join(parts)}")
