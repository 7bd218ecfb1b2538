"""The options of doctor."""

from dataclasses import dataclass

from llmforge.options import Options, option


@dataclass(frozen=True)
class DoctorOptions(Options):
    """`rehearse` goes with `plugin`."""

    plugin: str | None = option("Fail with a sentence if this plugin cannot run here.", None)
    rehearse: bool = option("With --plugin: a rehearsal on the CPU is enough.", False)
