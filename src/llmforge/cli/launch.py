"""`llmforge launch`."""

from functools import partial
from pathlib import Path

import typer

from llmforge.cli.command import example
from llmforge.launch.options import LaunchOptions
from llmforge.options import Debug
from llmforge.train.options import TrainOptions


@example(
    "llmforge launch --nproc-per-node 2 --",
    "train --model stage-1/modeling --data data --output stage-2 --learning-rate 5e-4 --max-steps 64",
)
def launch(options: LaunchOptions, besides: Debug) -> None:
    """Check all hosts of a hostfile, start a training on them, and stop all of them if one fails."""
    from llmforge.backends import registry
    from llmforge.launch.hosts import Ssh
    from llmforge.launch.start import Launch

    training, paths = read_command(options.command)
    Launch(
        command=options.command,
        paths=paths,
        check=partial(check_model, training),
        lacking=registry.find(registry.resolved(training.plugin, options.nproc_per_node or 1)).lacking,
        hostfile=options.hostfile,
        processes=options.nproc_per_node,
        launcher=options.launcher,
        ssh=Ssh(options.ssh_port, options.ssh_config),
        master_address=options.master_addr,
        master_port=options.master_port,
        variables=options.env,
        python=options.python,
        dry_run=options.dry_run,
    ).run()
    if options.stopped_exit_code and not options.dry_run and not is_finished(training.output):
        raise typer.Exit(options.stopped_exit_code)


def read_command(command: list[str]) -> tuple[TrainOptions, list[Path]]:
    """What a train command means, and what it reads, so must be on every host. A wrong flag is refused here, once, by
    its own sentence.
    """
    from llmforge.cli.app import load_command
    from llmforge.cli.command import read_words
    from llmforge.errors import UsageError

    if command[0] != "train":
        raise UsageError(
            f'"{command[0]}" cannot be launched on hosts; only train can: launch ... -- train ...'
        )
    context = load_command("train").make_context("llmforge launch -- train", command[1:])
    if context.params["stopped_exit_code"] is not None:
        raise UsageError("--stopped-exit-code is an option of launch itself: give it before the --.")
    options, besides = read_words("train", context.params)
    checkpoint = options.load_checkpoint if options.load_checkpoint != "latest" else None
    from llmforge import hub

    named = [
        None if hub.parse(options.model) else options.model,
        *options.data,
        *options.eval_data,
        besides.config,
        checkpoint,
    ]
    return options, [Path(path) for path in named if path]


def is_finished(output: Path) -> bool:
    """Whether the training in `output`, which the hosts share with this machine, has done its last step."""
    from llmforge.steps import manifest_path

    return manifest_path(output).is_file()


def check_model(training: TrainOptions, processes: int) -> None:
    """Refuses what so many processes cannot do with the model, where it lies on this machine too."""
    from llmforge.backends import registry
    from llmforge.train.run import weights_to_start_from
    from llmforge.weights.directory import ModelDirectory

    weights = weights_to_start_from(training)
    if (weights / "config.json").is_file():
        registry.find(registry.resolved(training.plugin, processes)).check_model(
            training, ModelDirectory(weights), processes
        )
