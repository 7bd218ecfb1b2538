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

    from llmforge.doctor.facts import collect
    from llmforge.doctor.plugins import COLOSSAL, NATIVE, judge, needs, refusal
    from llmforge.doctor.report import render
    from llmforge.errors import UsageError, UserError

    if plugin is not None and plugin not in (*NATIVE, *COLOSSAL):
        raise UsageError(f"--plugin {plugin}: must be one of {', '.join((*NATIVE, *COLOSSAL))}.")
    facts = collect()
    verdicts = judge(facts)
    if as_json:
        plugins = {name: {"needs": needs(name), **asdict(verdict)} for name, verdict in verdicts.items()}
        show_json({**facts, "plugins": plugins})
    else:
        show(render(facts, verdicts))
    if plugin and (sentence := refusal(plugin, verdicts[plugin], rehearse)):
        raise UserError(sentence)
