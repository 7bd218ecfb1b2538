"""`llmforge evaluate`."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmforge.cli.options import AsJson, Debug, example, paths, words


@example(
    "llmforge evaluate --model models/source models/export",
    "--data zh=heldout/zh.jsonl en=heldout/en.jsonl --output comparison.md",
)
def evaluate(
    model: Annotated[list[str], typer.Option(help="Model directories to compare.")],
    data: Annotated[
        list[str], typer.Option(help="[LABEL=]PATH of .jsonl or .txt documents, or directories of them.")
    ],
    output: Annotated[list[Path] | None, typer.Option(help="Also write the table here (.json, .md).")] = None,
    max_length: Annotated[
        int, typer.Option(min=2, help="Longest input in tokens; longer documents go on in windows.")
    ] = 2048,
    max_documents: Annotated[
        int | None, typer.Option(min=1, help="Only the first documents of each label.")
    ] = None,
    max_characters: Annotated[
        int | None, typer.Option(min=1, help="Only the beginning of each document.")
    ] = None,
    batch_tokens: Annotated[int, typer.Option(min=2, help="Tokens that are computed at once.")] = 2048,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the weights.")
    ] = "float32",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare models in bits per byte on the same documents, and their tokenizers in tokens per character."""
    from llmforge.evaluate.texts import load_corpora

    corpora = load_corpora(words(data), max_documents, max_characters)
    from llmforge.evaluate.compare import check_output, compare, write

    outputs = [check_output(file) for file in output or []]
    comparison = compare(paths(model), corpora, max_length, batch_tokens, dtype)
    for file in outputs:
        write(comparison, file)
    if as_json:
        print(json.dumps(comparison.as_json(), ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    header, rows = comparison.table()
    table = Table(*header)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    Console().print(table)
