"""`llmforge compare-tokenizers`."""

from llmforge.cli.command import example
from llmforge.cli.results import labeled_texts
from llmforge.console import show_json, show_table
from llmforge.options import Result
from llmforge.tokenizer.options import CompareTokenizersOptions


@example(
    "llmforge compare-tokenizers --tokenizer smollm2 tokenizer",
    "--data zh=heldout/zh.jsonl en=heldout/en.jsonl --output tokenizers.html",
)
def compare_tokenizers(options: CompareTokenizersOptions, result: Result) -> None:
    """Compare tokenizers on the same texts: vocabulary size, tokens per character, byte and document."""
    from llmforge import hub
    from llmforge.tokenizer import compare, compare_report

    outputs = [compare_report.check_output(file) for file in options.output]
    rows = compare.compare(
        [hub.local(path, "tokenizer") for path in options.tokenizer],
        compare.labeled(labeled_texts(options.data)),
        options.max_documents,
        options.tokenizer_scheme,
        options.reading,
    )
    for file in outputs:
        compare_report.write(rows, file)
    if result.json:
        show_json(compare.as_json(rows))
        return
    # In two lines, so that nothing is cut off in 80 columns.
    header = [name.replace("/", "/\n") for name in compare_report.HEADER]
    show_table(header, [compare_report.cells(row) for row in rows], text_columns=(0, 2))
