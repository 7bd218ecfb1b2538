"""`llmforge delta make` and `llmforge delta apply`."""

from pathlib import Path
from typing import Annotated

import typer

from llmforge.cli.options import AsJson, Debug, Overwrite, example, show_finished

Base = Annotated[Path, typer.Option(help="The model that the tuned one began as.")]


@example(
    "llmforge delta make --base Llama-2-7b --target work/Llama-2-7b-zh --output work/Llama-2-7b-zh-delta"
)
def make(
    base: Base,
    target: Annotated[Path, typer.Option(help="The tuned model, grown or not.")],
    output: Annotated[Path, typer.Option(help="Where the delta goes.")],
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a tuned model as its difference from its base, which is of no use without it."""
    from llmforge import hub
    from llmforge.weights import delta

    finished = delta.make(hub.local(base), hub.local(target), output, overwrite=overwrite)
    figures = finished.manifest.metrics
    summary = (
        f"{figures['tensors']:,} tensors, of {figures['grown_tensors']:,} the new rows travel whole, "
        f"{figures['whole_tensors']:,} are not in the base and travel whole"
    )
    show_finished(finished, as_json, summary)


@example("llmforge delta apply --base Llama-2-7b --delta Llama-2-7b-zh-delta --output Llama-2-7b-zh")
def apply(
    base: Base,
    delta: Annotated[Path, typer.Option(help="The delta, from delta make.")],
    output: Annotated[Path, typer.Option(help="Where the tuned model goes.")],
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the tuned model that a delta was made of, bit for bit."""
    from llmforge import hub
    from llmforge.weights.delta import apply as apply_delta

    show_finished(apply_delta(hub.local(base), hub.local(delta), output, overwrite=overwrite), as_json)


GROUP = {"make": make, "apply": apply}
