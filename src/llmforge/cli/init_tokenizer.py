"""`llmforge init-tokenizer`."""

from pathlib import Path
from typing import Annotated

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
    TokenizerScheme,
    example,
    reading,
    show_finished,
    texts,
)


@example(
    "llmforge init-tokenizer --source-tokenizer-dir smollm2 --target-tokenizer-dir smollm2-zh-tokenizer",
    "--expand-tokens-file pieces.jsonl",
)
def init_tokenizer(
    source_tokenizer_dir: Annotated[Path, typer.Option(help="Tokenizer (or model) directory to expand.")],
    target_tokenizer_dir: Annotated[Path, typer.Option(help="Tokenizer directory to write.")],
    expand_tokens_file: Annotated[
        Path,
        typer.Option(
            help='New pieces: jsonl of {"piece": "..."}, .txt with one a line, a sentencepiece .model or .vocab, or a '
            "tokenizer directory."
        ),
    ],
    closure: Annotated[
        bool,
        typer.Option(
            help="Add the characters and parts that new pieces need too; else only what is asked for."
        ),
    ] = True,
    verify_corpus: Annotated[
        list[str],
        typer.Option(help="Texts that the gates are run on; else the pieces and a built-in sample."),
    ] = [],  # noqa: B006 - typer copies it
    tokenizer_scheme: TokenizerScheme = None,
    text_field: TextField = None,
    source_field: SourceField = "source",
    category_field: CategoryField = "category",
    lines: Lines = False,
    max_document_bytes: MaxDocumentBytes = "256M",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Add pieces to a tokenizer, and prove that it still works.

    Every old id stays; new pieces come behind all of them. Reachability, parity with sentencepiece, round
    trip and drift are checked on each run, printed, and written to llmforge.json.
    """
    from llmforge import hub
    from llmforge.tokenizer.expand import init_tokenizer as init
    from llmforge.tokenizer.verify import summary

    finished = init(
        hub.local(source_tokenizer_dir, "tokenizer"),
        target_tokenizer_dir,
        hub.local(expand_tokens_file, "tokenizer"),
        closure,
        texts(verify_corpus),
        overwrite,
        tokenizer_scheme,
        reading(text_field, source_field, category_field, lines, max_document_bytes),
    )
    outputs, counts = finished.manifest.outputs, finished.manifest.metrics["pieces"]
    sizes = f"{outputs['source_size']:,} -> {outputs['size']:,} ids: {counts['added']:,} added"
    extra = f"{counts['closure']:,} by closure ({counts['already_present']:,} known already)"
    show_finished(
        finished, as_json, f"{sizes}, of them {extra}\n{summary(finished.manifest.metrics['gates'])}"
    )
