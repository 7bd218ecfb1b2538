"""`llmforge delta make` and `llmforge delta apply`."""

from dataclasses import replace

from llmforge.cli.command import example
from llmforge.cli.results import show_finished
from llmforge.options import Result
from llmforge.weights.options import DeltaApplyOptions, DeltaMakeOptions


@example("llmforge delta make --base smollm2 --model trained --output delta")
def make(options: DeltaMakeOptions, result: Result) -> None:
    """Write a tuned model as its difference from its base model."""
    from llmforge import hub
    from llmforge.weights import delta

    finished = delta.make(replace(options, base=hub.local(options.base), model=hub.local(options.model)))
    figures = finished.manifest.metrics
    summary = (
        f"{figures['tensors']:,} tensors; new rows of {figures['grown_tensors']:,} are stored whole, "
        f"{figures['whole_tensors']:,} are not in the base and are stored whole"
    )
    show_finished(finished, result.json, summary)


@example("llmforge delta apply --base smollm2 --delta delta --output restored")
def apply(options: DeltaApplyOptions, result: Result) -> None:
    """Restore a tuned model from its base and a delta, bit for bit."""
    from llmforge import hub
    from llmforge.weights.delta import apply as apply_delta

    options = replace(options, base=hub.local(options.base), delta=hub.local(options.delta))
    show_finished(apply_delta(options), result.json)
