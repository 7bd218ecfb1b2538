"""`llmforge plan`."""

from llmforge.cli.command import example
from llmforge.console import show, show_json
from llmforge.options import Result
from llmforge.train.plan_options import PlanOptions


@example("llmforge plan --model resized --data data --device h100 --processes 8 --plugin fsdp")
def plan(options: PlanOptions, result: Result) -> None:
    """Estimate parameters, memory, steps and hours of a training without loading the model."""
    from llmforge import hub
    from llmforge.backends.common.devices import by_name
    from llmforge.train.plan import make_plan
    from llmforge.weights.directory import ModelDirectory

    made = make_plan(
        options.training(),
        ModelDirectory(hub.local(options.model)),
        by_name(options.device),
        options.processes,
    )
    if result.json:
        show_json(made.to_json())
    else:
        show(made.render())
