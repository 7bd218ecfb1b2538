"""Which backends run on a machine, from its facts alone."""

from typing import Any

from llmforge.backends.backend import Verdict
from llmforge.backends.registry import all_backends


def judge(facts: dict[str, Any]) -> dict[str, Verdict]:
    """A verdict for each backend, in the order in which they are shown."""
    return {name: backend.requirements(facts) for name, backend in all_backends().items()}


def refusal(plugin: str, verdict: Verdict, rehearse: bool) -> str | None:
    """The sentence that says why a plugin cannot run here; None where it can (for `rehearse`, on the CPU)."""
    if verdict.runs == "yes" or (verdict.runs == "rehearsal" and rehearse):
        return None
    if verdict.runs == "rehearsal":
        return f"--plugin {plugin} cannot run here: there is no GPU; --rehearse runs it on the CPU."
    return f"--plugin {plugin} cannot run here: {'; '.join(verdict.missing)}."
