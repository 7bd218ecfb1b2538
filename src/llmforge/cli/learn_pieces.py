"""`llmforge learn-pieces`."""

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
    Seed,
    SourceField,
    TextField,
    TokenizerScheme,
    example,
    paths,
    reading,
    show_finished,
    texts,
)


@example(
    "llmforge learn-pieces --source-tokenizer-dir smollm2 --corpus zh/*.jsonl",
    "--num-pieces 2000 --script Han --output pieces.jsonl",
)
def learn_pieces(
    source_tokenizer_dir: Annotated[
        Path, typer.Option(help="Tokenizer (or model) directory to learn on top of.")
    ],
    num_pieces: Annotated[
        int, typer.Option(min=1, help="How many pieces to learn, missing characters included.")
    ],
    output: Annotated[Path, typer.Option(help="The jsonl file to write: one piece a line, in merge order.")],
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            help="Texts: files (.jsonl, .json, .parquet, .txt, ...; docs/data.md), directories, or names on the Hub."
        ),
    ] = None,
    word_list: Annotated[
        list[str] | None,
        typer.Option(help="Instead of texts: lists of words with frequencies, such as jieba's dict.txt."),
    ] = None,
    script: Annotated[
        str | None, typer.Option(help="Learn from words of one Unicode script only, such as Han.")
    ] = None,
    min_frequency: Annotated[
        int, typer.Option(min=1, help="Least frequency of a pair when it is merged.")
    ] = 2,
    max_length: Annotated[int, typer.Option(min=1, help="Most characters of a piece.")] = 16,
    text_field: TextField = None,
    source_field: SourceField = "source",
    category_field: CategoryField = "category",
    lines: Lines = False,
    max_document_bytes: MaxDocumentBytes = "256M",
    seed: Seed = 0,
    tokenizer_scheme: TokenizerScheme = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Learn new pieces from a corpus by continuing the tokenizer's own BPE.

    Pieces come in an order in which each can be merged of two that were there before. Give them to init-tokenizer.
    """
    from llmforge import hub
    from llmforge.errors import UsageError

    if bool(corpus) == bool(word_list):
        raise UsageError("give either --corpus or --word-list.")
    source = hub.local(source_tokenizer_dir, "tokenizer")
    limits = (script, min_frequency, max_length)
    if word_list:
        from llmforge.tokenizer.word_list import pieces_from_words

        finished = pieces_from_words(
            source, paths(word_list), output, num_pieces, *limits, overwrite, tokenizer_scheme
        )
        show_finished(finished, as_json, f"{finished.manifest.outputs['pieces']:,} words.")
        return
    from llmforge.tokenizer.learn import learn_pieces as learn

    finished = learn(
        source,
        texts(corpus or []),
        output,
        num_pieces,
        *limits,
        seed,
        overwrite,
        tokenizer_scheme,
        reading(text_field, source_field, category_field, lines, max_document_bytes),
    )
    metrics = finished.manifest.metrics
    show_finished(
        finished,
        as_json,
        f"{finished.manifest.outputs['pieces']:,} pieces from {metrics['words']:,} different words: "
        f"{metrics['characters']:,} characters in {metrics['tokens_after']:,} tokens, "
        f"{metrics['tokens_before']:,} before.",
    )
