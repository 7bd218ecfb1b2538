"""`llmforge launch`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmforge.cli.options import Debug, StoppedExitCode, example
from llmforge.train.options import TrainConfig

Launcher = Literal["auto", "torchrun", "colossalai"]


@example(
    "llmforge launch --hostfile hostfile --nproc-per-node 8 --",
    "train --pretrained grown --dataset data --save-dir stage-1 --plugin ddp",
)
def launch(
    command: Annotated[list[str], typer.Argument(help="The command, after --: train and its flags.")],
    hostfile: Annotated[
        Path | None, typer.Option(help="One host a line; without it, this machine alone.")
    ] = None,
    nproc_per_node: Annotated[
        int | None, typer.Option(min=1, help="Processes on each host (default: the GPUs of this one, or 1).")
    ] = None,
    launcher: Annotated[
        Launcher, typer.Option(help="What starts the processes on the hosts; auto is torchrun.")
    ] = "auto",
    ssh_port: Annotated[int | None, typer.Option(help="Port of the hosts' ssh servers.")] = None,
    ssh_config: Annotated[Path | None, typer.Option(help="Configuration file of ssh.")] = None,
    master_addr: Annotated[
        str | None, typer.Option(help="Where the processes meet (default: the first host).")
    ] = None,
    master_port: Annotated[int, typer.Option(min=1, max=65535, help="Port on which they meet.")] = 29500,
    env: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME or NAME=VALUE of a variable to pass to the hosts, besides docs/cluster.md's."
        ),
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="The hosts' Python (default: the path of this one).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the exact commands and contact no host.")
    ] = False,
    stopped_exit_code: StoppedExitCode = 0,
    debug: Debug = False,
) -> None:
    """Start a training on all hosts of a hostfile: check every host first, end all when one ends badly."""
    from llmforge.backends import registry
    from llmforge.launch.hosts import Ssh
    from llmforge.launch.start import Launch

    config, paths = read_command(command)
    Launch(
        command=command,
        paths=paths,
        check=partial(check_model, config),
        lacking=registry.find(registry.resolved(config.plugin, nproc_per_node or 1)).lacking,
        hostfile=hostfile,
        processes=nproc_per_node,
        launcher=launcher,
        ssh=Ssh(ssh_port, ssh_config),
        master_address=master_addr,
        master_port=master_port,
        variables=env or [],
        python=python,
        dry_run=dry_run,
    ).run()
    if stopped_exit_code and not dry_run and not is_finished(config.save_dir):
        raise typer.Exit(stopped_exit_code)


def read_command(command: list[str]) -> tuple[TrainConfig, list[Path]]:
    """What a train command means, and what it reads, so must be on every host. A wrong flag is refused here, once, by
    its own sentence.
    """
    from llmforge.cli.app import load_command
    from llmforge.cli.train import read_flags
    from llmforge.errors import UsageError

    if command[0] != "train":
        raise UsageError(
            f'"{command[0]}" cannot be launched on hosts; only train can: launch ... -- train ...'
        )
    context = load_command("train").make_context("llmforge launch -- train", command[1:])
    if context.params["stopped_exit_code"]:
        raise UsageError("--stopped-exit-code is an option of launch itself: give it before the --.")
    flags = {
        name: value
        for name, value in context.params.items()
        if name not in ("as_json", "stopped_exit_code", "debug")
    }
    config = read_flags(**flags)
    checkpoint = config.load_checkpoint if config.load_checkpoint != "latest" else None
    from llmforge import hub

    named = [
        None if hub.parse(config.pretrained) else config.pretrained,
        *config.dataset,
        *config.holdout,
        flags["config"],
        checkpoint,
    ]
    return config, [Path(path) for path in named if path]


def is_finished(save_dir: Path) -> bool:
    """Whether the training in `save_dir`, which the hosts share with this machine, has done its last step."""
    from llmforge.steps import manifest_path

    return manifest_path(save_dir).is_file()


def check_model(config: TrainConfig, processes: int) -> None:
    """Refuses what so many processes cannot do with the model, where it lies on this machine too."""
    from llmforge.backends import registry
    from llmforge.train.run import weights_to_start_from

    weights = weights_to_start_from(config)
    if (weights / "config.json").is_file():
        registry.find(registry.resolved(config.plugin, processes)).check_model(config, weights, processes)
