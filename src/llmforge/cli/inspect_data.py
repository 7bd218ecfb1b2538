"""`llmforge inspect-data`."""

from llmforge.cli.command import example
from llmforge.console import show, show_json
from llmforge.dataset.options import InspectOptions
from llmforge.options import Result


@example("llmforge inspect-data --data data --tokenizer tokenizer --output data.html")
def inspect_data(options: InspectOptions, result: Result) -> None:
    """Show the contents of a dataset: parts, categories, lengths, fill rate and decoded rows.

    In the decoded rows, text between ⟦ and ⟧ is read but not trained on.
    """
    from llmforge import hub
    from llmforge.dataset.inspection import inspect_dataset
    from llmforge.dataset.inspection_text import as_html, as_text
    from llmforge.steps import check_report, write_report

    page = options.output
    if page:
        check_report(page, "inspect-data", "--output")
    tokenizer = hub.local(options.tokenizer, "tokenizer") if options.tokenizer else None
    found = inspect_dataset(options.data, tokenizer, options.samples, options.seed, options.tokenizer_scheme)
    if page:
        write_report(page, as_html(found), "inspect-data", "--output")
    if result.json:
        show_json(found)
    else:
        show(str(page) if page else as_text(found))
