"""`llmforge init-model`."""

from pathlib import Path
from typing import Annotated

import typer

from llmforge.cli.options import AsJson, Debug, Overwrite, Seed, example, show_finished


@example(
    "llmforge init-model --source-model-and-tokenizer-path SmolLM2-135M",
    "--target-tokenizer-path work/tokenizer --target-model-path work/model",
)
def init_model(
    source_model_and_tokenizer_path: Annotated[
        Path, typer.Option(help="The model to grow, a Hugging Face directory with its tokenizer.")
    ],
    target_tokenizer_path: Annotated[Path, typer.Option(help="The larger tokenizer, from init-tokenizer.")],
    target_model_path: Annotated[Path, typer.Option(help="Where the grown model goes.")],
    init: Annotated[
        str,
        typer.Option(help="How new rows are made: subtoken-mean, mean or gaussian."),
    ] = "subtoken-mean",
    head_init: Annotated[
        str,
        typer.Option(
            help="How new rows of an untied head are made: same (as --init), mean or first-subtoken."
        ),
    ] = "same",
    pad_to_multiple_of: Annotated[
        int, typer.Option(help="Rows are padded to a multiple of this times --tp.")
    ] = 64,
    tp: Annotated[
        int, typer.Option(help="The tensor-parallel size that the model will be trained with.")
    ] = 1,
    norm_correction: Annotated[
        bool,
        typer.Option(
            "--norm-correction",
            help="Scale new rows to the median norm of old ones. Ruins tied models; measure first.",
        ),
    ] = False,
    seed: Seed = 42,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Grow a model's embeddings to a larger tokenizer.

    The model is streamed from file to file: only its embedding and head are computed with, every other tensor
    is copied as it is, and the rows of old tokens stay the same bit for bit.
    """
    from llmforge.model.grow import Growth, grow

    growth = Growth(init, head_init, pad_to_multiple_of, tp, norm_correction, seed)
    finished = grow(
        source_model_and_tokenizer_path, target_tokenizer_path, target_model_path, growth, overwrite=overwrite
    )
    rows = finished.manifest.outputs["vocabulary"]
    summary = f"{rows['source']:,} ids -> {rows['size']:,} ids in {rows['padded']:,} rows, new rows by {init}"
    show_finished(finished, as_json, summary)
