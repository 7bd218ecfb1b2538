"""`llmforge prepare-data`."""

from pathlib import Path
from typing import Annotated

import typer

from llmforge.cli.options import AsJson, Debug, Overwrite, Seed, example, paths, show_finished


@example(
    "llmforge prepare-data",
    "--data-input-dirs corpus/zh,corpus/en",
    "--tokenizer-dir models/smollm2-zh",
    "--data-output-dirs data/zh-en",
    "--max-length 4096",
)
def prepare_data(
    data_input_dirs: Annotated[
        list[str],
        typer.Option(
            help="Directories or files of .jsonl, .jsonl.gz, .jsonl.zst, .parquet; words, commas or both."
        ),
    ],
    tokenizer_dir: Annotated[Path, typer.Option(help="The tokenizer, or a model with its tokenizer.")],
    data_output_dirs: Annotated[
        Path, typer.Option("--data-output-dirs", "--data-output-dir", help="The dataset to write.")
    ],
    max_length: Annotated[int, typer.Option(min=2, help="Tokens in a row, at most.")] = 4096,
    num_spliced_dataset_bins: Annotated[
        int, typer.Option(min=1, help="Parts of equal tokens, category by category.")
    ] = 10,
    splice: Annotated[
        str,
        typer.Option(
            help="How documents share rows: best-fit (fewest rows), greedy (in order) or concat (one stream)."
        ),
    ] = "best-fit",
    text_field: Annotated[
        str | None, typer.Option(help="The field of the text.  [default: target, else text]")
    ] = None,
    category_field: Annotated[
        str, typer.Option(help="The field of the category; without it, the directory's name.")
    ] = "category",
    holdout: Annotated[
        str,
        typer.Option(
            help="Share of each category's documents to set aside for evaluation, such as 0.5%; at least one."
        ),
    ] = "0",
    on_bad_line: Annotated[str, typer.Option(help="reject (count it and go on) or stop.")] = "reject",
    max_rejected: Annotated[
        str, typer.Option(help="Share of unusable lines above which nothing is written.")
    ] = "1%",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 takes one per core.")] = 0,
    seed: Seed = 42,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Tokenize a corpus and splice it into balanced buckets of full rows; no document loses a token.

    A killed run goes on where it was when the same command is given again.
    """
    from llmforge.data.options import parse_choice, parse_share
    from llmforge.data.prepare import PrepareOptions, prepare_data
    from llmforge.data.reading import Fields
    from llmforge.data.report import summary_text
    from llmforge.data.splicing import SPLICES

    options = PrepareOptions(
        inputs=paths(data_input_dirs),
        tokenizer_dir=tokenizer_dir,
        output=data_output_dirs,
        max_length=max_length,
        bins=num_spliced_dataset_bins,
        splice=parse_choice("--splice", splice, SPLICES),
        fields=Fields(text_field, category_field),
        holdout=parse_share("--holdout", holdout),
        stop_on_bad_line=parse_choice("--on-bad-line", on_bad_line, ("reject", "stop")) == "stop",
        max_rejected=parse_share("--max-rejected", max_rejected),
        seed=seed,
        workers=workers,
        overwrite=overwrite,
    )
    finished = prepare_data(options)
    show_finished(finished, as_json, summary_text(finished.manifest))
