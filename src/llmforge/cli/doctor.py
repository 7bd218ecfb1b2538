"""`llmforge doctor`."""

from llmforge.cli.command import example
from llmforge.console import show, show_json
from llmforge.doctor.options import DoctorOptions
from llmforge.options import Result


@example("llmforge doctor --plugin ddp")
def doctor(options: DoctorOptions, result: Result) -> None:
    """Show what is installed, which backends run on this machine, and what the others need."""
    from dataclasses import asdict

    from llmforge.backends.registry import find
    from llmforge.doctor.facts import collect
    from llmforge.doctor.plugins import judge, refusal
    from llmforge.doctor.report import render
    from llmforge.errors import UserError

    plugin = options.plugin
    if plugin is not None:
        find(plugin)
    facts = collect()
    verdicts = judge(facts)
    if result.json:
        plugins = {name: {"needs": find(name).needs, **asdict(verdict)} for name, verdict in verdicts.items()}
        show_json({**facts, "plugins": plugins})
    else:
        show(render(facts, verdicts))
    if plugin and (sentence := refusal(plugin, verdicts[plugin], options.rehearse)):
        raise UserError(sentence)
