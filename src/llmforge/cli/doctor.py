"""`llmforge doctor`."""

from typing import Annotated

import typer

from llmforge.cli.options import AsJson, Debug, example
from llmforge.console import show, show_json


@example("llmforge doctor --plugin zero2")
def doctor(
    plugin: Annotated[
        str | None, typer.Option(help="Fail with a sentence if this plugin cannot run here.")
    ] = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="With --plugin: a rehearsal on the CPU is enough.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what this machine has, which plugins run on it, and what the others miss."""
    from dataclasses import asdict

    from llmforge.backends.registry import find
    from llmforge.doctor.facts import collect
    from llmforge.doctor.plugins import judge, refusal
    from llmforge.doctor.report import render
    from llmforge.errors import UserError

    if plugin is not None:
        find(plugin)
    facts = collect()
    verdicts = judge(facts)
    if as_json:
        plugins = {name: {"needs": find(name).needs, **asdict(verdict)} for name, verdict in verdicts.items()}
        show_json({**facts, "plugins": plugins})
    else:
        show(render(facts, verdicts))
    if plugin and (sentence := refusal(plugin, verdicts[plugin], rehearse)):
        raise UserError(sentence)
