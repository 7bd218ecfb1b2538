"""The options of doctor."""

from dataclasses import dataclass

from llmforge.options import Options, option


@dataclass(frozen=True)
class DoctorOptions(Options):
    """`rehearse` goes with `plugin`."""

    plugin: str | None = option("Exit with code 1 and a reason if this plugin cannot run here.", None)
    rehearse: bool = option("With --plugin: accept a rehearsal on the CPU.", False)
