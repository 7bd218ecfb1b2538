"""`llmforge compare-tokenizers`."""

from pathlib import Path
from typing import Annotated

import typer

from llmforge.cli.options import (
    AsJson,
    CategoryField,
    Debug,
    Lines,
    MaxDocumentBytes,
    SourceField,
    TextField,
    TokenizerScheme,
    example,
    labelled_texts,
    reading,
)
from llmforge.console import show_json, show_table


@example(
    "llmforge compare-tokenizers smollm2 smollm2-zh-tokenizer",
    "--corpus zh=news.jsonl en=speeches.jsonl code=stdlib.jsonl --output comparison.html",
)
def compare_tokenizers(
    directories: Annotated[
        list[Path], typer.Argument(help="Tokenizer (or model) directories.", metavar="DIR...")
    ],
    corpus: Annotated[
        list[str],
        typer.Option(
            help="[LABEL=]PATH of samples: files (.jsonl, .json, .parquet, .txt, ...; docs/data.md), directories, or names on the Hub."
        ),
    ],
    output: Annotated[list[Path] | None, typer.Option(help="Also write it here (.md, .json, .html).")] = None,
    max_samples: Annotated[
        int | None, typer.Option(min=1, help="Only the first samples of each label.")
    ] = None,
    tokenizer_scheme: TokenizerScheme = None,
    text_field: TextField = None,
    source_field: SourceField = "source",
    category_field: CategoryField = "category",
    lines: Lines = False,
    max_document_bytes: MaxDocumentBytes = "256M",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare tokenizers on the same texts: vocabulary, tokens per character and byte, mean tokens per sample."""
    from llmforge import hub
    from llmforge.tokenizer import compare, compare_report

    outputs = [compare_report.check_output(file) for file in output or []]
    rows = compare.compare(
        [hub.local(path, "tokenizer") for path in directories],
        compare.labelled(labelled_texts(corpus)),
        max_samples,
        tokenizer_scheme,
        reading(text_field, source_field, category_field, lines, max_document_bytes),
    )
    for file in outputs:
        compare_report.write(rows, file)
    if as_json:
        show_json(compare.as_json(rows))
        return
    # In two lines, so that nothing is cut off in 80 columns.
    header = [name.replace("/", "/\n") for name in compare_report.HEADER]
    show_table(header, [compare_report.cells(row) for row in rows], text_columns=(0, 2))
