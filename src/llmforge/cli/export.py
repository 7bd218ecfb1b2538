"""`llmforge export`."""

from pathlib import Path
from typing import Annotated

import typer

from llmforge.cli.options import AsJson, Debug, Overwrite, example, show_finished


@example("llmforge export --checkpoint work/train --output-dir work/SmolLM2-135M-zh")
def export(
    checkpoint: Annotated[
        Path,
        typer.Option(
            help="What to export: a checkpoint directory, the directory of a training, or a modeling folder."
        ),
    ],
    output_dir: Annotated[Path, typer.Option(help="Where the Hugging Face model goes.")],
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a checkpoint as an ordinary Hugging Face model.

    Padding rows are cut off, and the tokenizer is put beside the weights.
    """
    from llmforge.model.export import export as export_model

    finished = export_model(checkpoint, output_dir, overwrite=overwrite)
    rows = finished.manifest.outputs["vocabulary"]
    show_finished(finished, as_json, f"{rows['size']:,} ids in {rows['padded']:,} rows")
