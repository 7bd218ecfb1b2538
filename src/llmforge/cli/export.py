"""`llmforge export`."""

from pathlib import Path
from typing import Annotated

import typer

from llmforge.cli.options import AsJson, Debug, Overwrite, TrustRemoteCode, example, show_finished


@example(
    "llmforge export --checkpoint work/train --output-dir work/SmolLM2-135M-zh --dtype bfloat16 --verify"
)
def export(
    checkpoint: Annotated[
        Path,
        typer.Option(help="What to export: a checkpoint, the directory of a training, or a modeling folder."),
    ],
    output_dir: Annotated[Path, typer.Option(help="Where the Hugging Face model goes.")],
    max_shard_size: Annotated[
        str, typer.Option(help="Largest weight file, such as 5GB; one tensor is never divided.")
    ] = "5GB",
    dtype: Annotated[
        str,
        typer.Option(
            help="Of the weights: float32, bfloat16, float16, or stored for what the checkpoint has."
        ),
    ] = "stored",
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Compare logits with the checkpoint's, both read by transformers anew. By default the checksums of the "
            "checkpoint alone are checked, if llmforge wrote it; with --no-verify not even they.",
            show_default=False,
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a checkpoint as an ordinary Hugging Face model.

    Padding rows are cut off, the tokenizer is put beside the weights, and a model card tells how the model was made.
    """
    from llmforge import hub
    from llmforge.weights.export import ExportOptions
    from llmforge.weights.export import export as export_model

    options = ExportOptions(max_shard_size, dtype, bool(verify))
    finished = export_model(
        hub.local(checkpoint),
        output_dir,
        options,
        overwrite=overwrite,
        checksums=verify is not False,
        trust_remote_code=trust_remote_code,
    )
    rows, metrics = finished.manifest.outputs["vocabulary"], finished.manifest.metrics
    summary = f"{rows['size']:,} ids, {metrics['rows_cut']:,} padding rows cut off"
    if "verified" in metrics:
        summary += f", logits within {metrics['verified']:.2g} of the checkpoint's"
    show_finished(finished, as_json, summary)
