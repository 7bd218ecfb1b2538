"""`llmforge delta make` and `llmforge delta apply`."""

from llmforge.cli.command import example
from llmforge.cli.results import show_finished
from llmforge.options import Result
from llmforge.weights.options import DeltaApplyOptions, DeltaMakeOptions


@example("llmforge delta make --base Llama-2-7b --model work/Llama-2-7b-zh --output work/Llama-2-7b-zh-delta")
def make(options: DeltaMakeOptions, result: Result) -> None:
    """Write a tuned model as its difference from its base, which is of no use without it."""
    from llmforge import hub
    from llmforge.weights import delta

    finished = delta.make(
        hub.local(options.base), hub.local(options.model), options.output, overwrite=options.overwrite
    )
    figures = finished.manifest.metrics
    summary = (
        f"{figures['tensors']:,} tensors, of {figures['grown_tensors']:,} the new rows travel whole, "
        f"{figures['whole_tensors']:,} are not in the base and travel whole"
    )
    show_finished(finished, result.json, summary)


@example("llmforge delta apply --base Llama-2-7b --delta Llama-2-7b-zh-delta --output Llama-2-7b-zh")
def apply(options: DeltaApplyOptions, result: Result) -> None:
    """Write the tuned model that a delta was made of, bit for bit."""
    from llmforge import hub
    from llmforge.weights.delta import apply as apply_delta

    base, delta = hub.local(options.base), hub.local(options.delta)
    show_finished(apply_delta(base, delta, options.output, overwrite=options.overwrite), result.json)
