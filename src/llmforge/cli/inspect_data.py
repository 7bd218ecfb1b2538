"""`llmforge inspect-data`."""

from pathlib import Path
from typing import Annotated

import typer

from llmforge.cli.options import AsJson, Debug, Seed, example
from llmforge.console import show, show_json


@example("llmforge inspect-data data/zh-en --tokenizer-dir models/smollm2-zh --html zh-en.html")
def inspect_data(
    dataset: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Outputs of prepare-data, or parts of one.")
    ],
    tokenizer_dir: Annotated[
        Path | None, typer.Option(help="Decode the samples with this tokenizer.")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="How many rows to show.")] = 3,
    html: Annotated[Path | None, typer.Option(help="Write one HTML page to this file instead.")] = None,
    seed: Seed = 42,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what a dataset holds: composition by bucket and category, lengths, fill, and decoded rows.

    In the samples ⟦ and ⟧ stand around text that is read but not trained on.
    """
    from llmforge import hub
    from llmforge.dataset.inspection import inspect_dataset
    from llmforge.dataset.inspection_text import as_html, as_text
    from llmforge.steps import check_report, write_report

    if html:
        check_report(html, "inspect-data", "--html")
    found = inspect_dataset(
        dataset, hub.local(tokenizer_dir, "tokenizer") if tokenizer_dir else None, samples, seed
    )
    if html:
        write_report(html, as_html(found), "inspect-data", "--html")
    if as_json:
        show_json(found)
    else:
        show(str(html) if html else as_text(found))
