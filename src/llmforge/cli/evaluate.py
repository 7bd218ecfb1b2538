"""`llmforge evaluate`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llmforge.cli.options import (
    AsJson,
    CategoryField,
    Debug,
    Lines,
    MaxDocumentBytes,
    Overwrite,
    SourceField,
    TextField,
    TrustRemoteCode,
    example,
    labelled_texts,
    paths,
    reading,
)
from llmforge.console import show_json, show_table


@example(
    "llmforge evaluate --model models/source models/export",
    "--data zh=heldout/zh.jsonl en=heldout/en.jsonl --output comparison.md",
)
def evaluate(
    model: Annotated[list[str], typer.Option(help="Model directories to compare.")],
    data: Annotated[
        list[str],
        typer.Option(
            help="[LABEL=]PATH of documents: files (.jsonl, .json, .parquet, .txt, ...; docs/data.md), directories, or names on the Hub."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Write the table here (.json or .md), and do nothing if it is there.")
    ] = None,
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
    trust_remote_code: TrustRemoteCode = False,
    text_field: TextField = None,
    source_field: SourceField = "source",
    category_field: CategoryField = "category",
    lines: Lines = False,
    max_document_bytes: MaxDocumentBytes = "256M",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare models in bits per byte on the same documents, and their tokenizers in tokens per character."""
    from llmforge import hub
    from llmforge.evaluate.compare import Protocol, compare, compare_to_file, table

    models, sources = [hub.local(path) for path in paths(model)], labelled_texts(data)
    how = reading(text_field, source_field, category_field, lines, max_document_bytes)
    protocol = Protocol(max_length, max_documents, max_characters, batch_tokens, dtype, reading=how)
    if output is None:
        results = compare(models, sources, protocol, trust_remote_code)
    else:
        results = compare_to_file(
            models, sources, protocol, output, overwrite, trust_remote_code
        ).manifest.metrics
    if as_json:
        show_json(results)
        return
    show_table(*table(results))
