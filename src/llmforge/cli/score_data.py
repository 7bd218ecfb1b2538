"""`llmforge score-data`."""

from dataclasses import replace

from llmforge.cli.command import example
from llmforge.cli.results import show_finished, texts
from llmforge.evaluate.options import ScoreDataOptions
from llmforge.options import Result


@example(
    "llmforge score-data --model smollm2 --data corpus --output scored",
)
def score_data(options: ScoreDataOptions, result: Result) -> None:
    """Write how many bits per byte a model needs for each document.

    The output has the documents with a number `bits_per_byte`, for prepare-data --order and --keep. With a second model also
    `bits_per_byte_2` and `bits_per_byte_difference`, the first less the second: what the second model knows better.
    """
    from llmforge import hub
    from llmforge.evaluate.scoring import score_data as score

    models = [hub.local(model) for model in options.model]
    finished = score(replace(options, model=models, data=texts(options.data)))
    metrics = finished.manifest.metrics
    means = ", ".join(f"{name} {value:.3f}" for name, value in metrics["mean"].items())
    summary = f"{metrics['documents']:,} documents, {metrics['bytes']:,} bytes: {means}"
    if metrics["rejected"]:
        summary += f"; {metrics['rejected']:,} documents could not be read"
    show_finished(finished, result.json, summary)
