"""`llmforge export`."""

from llmforge.cli.command import example
from llmforge.cli.results import show_finished
from llmforge.console import warn
from llmforge.options import Result
from llmforge.weights.options import ExportOptions


@example("llmforge export --checkpoint stage-2 --output trained --dtype bfloat16 --verify")
def export(options: ExportOptions, result: Result) -> None:
    """Write a checkpoint as a Hugging Face model with tokenizer and model card, as an adapter, or as a GGUF file.

    Padding rows of embedding and head are removed.
    """
    from llmforge import hub
    from llmforge.weights.export import export as export_model
    from llmforge.weights.export import model_directory

    checkpoint, checksums = hub.local(options.checkpoint), options.format.verify is not False
    if options.format.format == "adapter":
        from llmforge.weights.adapter import export_adapter

        finished = export_adapter(
            checkpoint, options.output, options.format, overwrite=options.overwrite, checksums=checksums
        )
    elif options.format.format == "gguf":
        from llmforge.weights.gguf.write import export_gguf

        finished = export_gguf(
            model_directory(checkpoint),
            options.output,
            options.format,
            overwrite=options.overwrite,
            checksums=checksums,
        )
    else:
        finished = export_model(
            checkpoint,
            options.output,
            options.format,
            overwrite=options.overwrite,
            checksums=checksums,
            trust_remote_code=options.trust_remote_code,
        )
    rows, metrics = finished.manifest.outputs["vocabulary"], finished.manifest.metrics
    if "rows_cut" in metrics:
        summary = f"{rows['size']:,} ids, {metrics['rows_cut']:,} padding rows removed"
    else:
        summary = (
            f"an adapter of {metrics['parameters']:,} parameters for {finished.manifest.outputs['base']}"
        )
    if quantized := metrics.get("quantized"):
        size, bits = quantized["bytes"], quantized["bits_per_weight"]
        summary += f", {options.format.quantize}: {size / 1e6:,.1f} MB of weights, {bits:.2f} bits each"
    if "verified" in metrics:
        summary += f", logits within {metrics['verified']:.2g} of the checkpoint's"
    against = metrics.get("vllm")
    for reason in against or []:
        warn(f"vLLM: {reason}.")
    if against == []:
        summary += ", everything there that vLLM asks for"
    show_finished(finished, result.json, summary)
