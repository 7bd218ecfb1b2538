"""`llmforge prepare-data`."""

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
    example,
    paths,
    reading,
    show_finished,
    texts,
    words,
)
from llmforge.console import show, show_json
from llmforge.errors import UsageError

QUALITY, MACHINES, ANCESTOR = "Quality (off by default)", "Many machines", "As the ancestor called them"


@example(
    "llmforge prepare-data",
    "--data-input-dirs corpus/zh,corpus/en",
    "--tokenizer-dir models/smollm2-zh",
    "--data-output-dirs data/zh-en",
    "--max-length 4096 --mix zh=0.7,en=0.3 --holdout 0.5%",
)
def prepare_data(
    data_input_dirs: Annotated[
        list[str],
        typer.Option(
            help="Files (.jsonl, .json, .parquet, .txt, ...; docs/data.md), directories, or names on the Hub; words, commas or both."
        ),
    ],
    tokenizer_dir: Annotated[Path, typer.Option(help="The tokenizer, or a model with its tokenizer.")],
    data_output_dirs: Annotated[
        Path | None,
        typer.Option(
            "--data-output-dirs", "--data-output-dir", help="The dataset to write; its parts lie in arrow."
        ),
    ] = None,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens in a row, at most.")] = 4096,
    num_spliced_dataset_bins: Annotated[
        int, typer.Option(min=1, help="Parts, of equal tokens of every category.")
    ] = 10,
    splice: Annotated[
        str,
        typer.Option(
            help="How documents share rows: best-fit (fewest rows), greedy (in order), concat (one stream)."
        ),
    ] = "best-fit",
    documents_per_row: Annotated[
        int,
        typer.Option(
            min=0,
            max=1,
            help="1: a row is one document or a part of one, as models with state between positions need; 0: no limit.",
        ),
    ] = 0,
    text_field: TextField = None,
    source_field: SourceField = "source",
    category_field: CategoryField = "category",
    lines: Lines = False,
    max_document_bytes: MaxDocumentBytes = "256M",
    mix: Annotated[
        list[str],
        typer.Option(
            help="Shares of tokens, such as zh=0.7,en=0.3; nothing is repeated, so the scarcest limits."
        ),
    ] = [],  # noqa: B006 - typer copies it
    max_tokens: Annotated[
        str, typer.Option(help="Take that many tokens at most: 2000000, 2M, 1.5B; 0 is all.")
    ] = "0",
    holdout: Annotated[
        str,
        typer.Option(
            help="Share of each category's documents to set aside in holdout/, at least one; such as 0.5%."
        ),
    ] = "0",
    on_bad_line: Annotated[str, typer.Option(help="reject (count it and go on) or stop.")] = "reject",
    max_rejected: Annotated[
        str, typer.Option(help="Share of unusable lines above which nothing is written.")
    ] = "1%",
    dedup: Annotated[
        str,
        typer.Option(
            help="Drop repeated documents: exact, or near (and exact) by MinHash.", rich_help_panel=QUALITY
        ),
    ] = "",
    quality: Annotated[str, typer.Option(help="gopher: the Gopher rules.", rich_help_panel=QUALITY)] = "",
    blocklist: Annotated[
        Path | None,
        typer.Option(
            help="Drop documents that match one of this file's regular expressions.", rich_help_panel=QUALITY
        ),
    ] = None,
    decontaminate: Annotated[
        list[str],
        typer.Option(
            help="Drop documents that share 13 words in a row with these files.", rich_help_panel=QUALITY
        ),
    ] = [],  # noqa: B006
    shard: Annotated[
        str,
        typer.Option(
            help="Do one part of the encoding, 0/4 to 3/4 of four, each anywhere.", rich_help_panel=MACHINES
        ),
    ] = "",
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Join what every --shard made into the dataset.", rich_help_panel=MACHINES
        ),
    ] = False,
    ray: Annotated[
        str,
        typer.Option(help="Work on the Ray cluster at this address (or: local).", rich_help_panel=MACHINES),
    ] = "",
    workers: Annotated[
        int, typer.Option(min=0, help="Processes; 0 is one per core.", rich_help_panel=MACHINES)
    ] = 0,
    data_cache_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where intermediate files lie. Default: beside the output.", rich_help_panel=ANCESTOR
        ),
    ] = None,
    data_arrow_output_dir: Annotated[
        Path | None,
        typer.Option(help="The dataset to write, its parts directly in it.", rich_help_panel=ANCESTOR),
    ] = None,
    data_jsonl_output_dir: Annotated[
        Path | None,
        typer.Option(help="Write the rows as JSON lines too, there.", rich_help_panel=ANCESTOR),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Predict tokens, rows, size and time from a sample.")
    ] = False,
    seed: Seed = 42,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Tokenize a corpus and splice it into balanced buckets of full rows; no document loses a token.

    A killed run goes on where it was when the same command is given again.
    """
    from llmforge.dataset import options as read
    from llmforge.dataset.workers import warm_up_for

    inputs = texts(data_input_dirs)
    if not (ray or dry_run):
        warm_up_for(inputs, workers)  # first: it takes as long as the imports below
    from llmforge import hub
    from llmforge.dataset.forecast import forecast
    from llmforge.dataset.jsonl import check_place, write_jsonl
    from llmforge.dataset.packing import SPLICES
    from llmforge.dataset.prepare import prepare_data
    from llmforge.dataset.report import forecast_text, summary_text

    if (data_output_dirs is None) == (data_arrow_output_dir is None):
        raise UsageError(
            "give the output once: --data-output-dirs, or as the ancestor --data-arrow-output-dir."
        )
    if merge and shard:
        raise UsageError("--shard makes one part and --merge joins them; give one of them.")
    splice = read.parse_choice("--splice", splice, SPLICES)
    if documents_per_row and splice != SPLICES[0]:
        raise UsageError(
            f"--splice {splice} joins documents in rows, and --documents-per-row 1 does not; give one."
        )
    options = read.PrepareOptions(
        inputs=inputs,
        tokenizer_dir=hub.local(tokenizer_dir, "tokenizer"),
        output=data_output_dirs or data_arrow_output_dir or Path(),
        flat=data_output_dirs is None,
        max_length=max_length,
        bins=num_spliced_dataset_bins,
        splice=splice,
        documents_per_row=documents_per_row,
        reading=reading(text_field, source_field, category_field, lines, max_document_bytes),
        mix=read.parse_mix(words(mix)),
        max_tokens=read.parse_count("--max-tokens", max_tokens),
        holdout=read.parse_share("--holdout", holdout),
        dedup=read.parse_choice("--dedup", dedup, ("", "exact", "near")),
        gopher=read.parse_choice("--quality", quality, ("", "gopher")) == "gopher",
        blocklist=blocklist,
        decontaminate=paths(decontaminate),
        stop_on_bad_line=read.parse_choice("--on-bad-line", on_bad_line, ("reject", "stop")) == "stop",
        max_rejected=read.parse_share("--max-rejected", max_rejected),
        seed=seed,
        workers=workers,
        ray=ray,
        shard=read.parse_shard(shard),
        merge=merge,
        cache_dir=data_cache_dir,
        overwrite=overwrite,
    )
    if dry_run:
        expected = forecast(options)
        if as_json:
            show_json(expected)
        else:
            show(forecast_text(expected))
        return
    if data_jsonl_output_dir is not None and not shard:
        check_place(options, data_jsonl_output_dir)
    finished = prepare_data(options)
    if data_jsonl_output_dir is not None and not shard:
        write_jsonl(finished.output, data_jsonl_output_dir, workers=workers, overwrite=overwrite)
    show_finished(finished, as_json, summary_text(finished.manifest))
