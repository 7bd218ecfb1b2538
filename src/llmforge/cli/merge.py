"""`llmforge merge`."""

from dataclasses import replace

from llmforge.cli.command import example
from llmforge.cli.results import show_finished
from llmforge.options import Result
from llmforge.weights.options import MergeOptions


@example("llmforge merge --models stage-2 resized --weights 0.7 0.3 --output merged")
def merge(options: MergeOptions, result: Result) -> None:
    """Merge models, or checkpoints of a training, into one model.

    Rows of tokens that a smaller vocabulary lacks are taken from the models that have them.
    """
    from llmforge import hub
    from llmforge.weights.merge import merge as merge_models
    from llmforge.weights.merge import summary

    found = replace(
        options,
        models=[hub.local(path) for path in options.models],
        base=hub.local(options.base) if options.base else None,
    )
    finished = merge_models(found)
    show_finished(finished, result.json, summary(finished.manifest.metrics))
