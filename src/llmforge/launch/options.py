# ruff: noqa: RUF009 - `option` makes dataclass fields
"""The options of launch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmforge.options import Options, option


@dataclass(frozen=True)
class LaunchOptions(Options):
    """`command` is `train` and its flags; `env` are NAME or NAME=VALUE of variables passed to the hosts."""

    command: list[str] = option(
        "After --: train and its options.", positional=True, commas=False, metavar="COMMAND..."
    )
    hostfile: Path | None = option("File with one host per line (default: this machine only).", None)
    nproc_per_node: int | None = option(
        "Number of processes per host (default: the GPUs of this one, or 1).", None, least=1
    )
    launcher: Literal["auto", "torchrun", "colossalai"] = option(
        "Program that starts the processes on the hosts; auto is torchrun.", "auto"
    )
    ssh_port: int | None = option("Port of the hosts' ssh servers.", None)
    ssh_config: Path | None = option("Configuration file of ssh.", None)
    master_addr: str | None = option("Master address (default: the first host).", None)
    master_port: int = option("Master port.", 29500, least=1, most=65535)
    env: list[str] = option(
        "Environment variable to pass to the hosts, NAME or NAME=VALUE, besides those in docs/cluster.md.",
        [],
        commas=False,
    )
    python: str | None = option("Python on the hosts (default: the path of this one).", None)
    dry_run: bool = option("Print the exact commands and contact no host.", False)
    stopped_exit_code: int = option(
        "Exit code if a signal or --time-limit stopped the training before its last step.",
        0,
        least=0,
        most=255,
    )
