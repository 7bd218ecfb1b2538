"""`llmforge train`."""

import sys
from dataclasses import asdict

import typer

from llmforge.cli.command import example
from llmforge.cli.results import show_finished
from llmforge.console import show_json
from llmforge.train.options import TrainCommandOptions, TrainOptions


@example(
    "llmforge train --model resized --data data --output stage-1",
    "--trainable new-embeddings --learning-rate 6e-3 --max-steps 32",
)
def train(options: TrainOptions, besides: TrainCommandOptions) -> None:
    """Continue pretraining a model on packed rows: one stage.

    All options can also be set in a YAML file (--config); the command line takes precedence. The final model is
    OUTPUT/modeling, the --model of the next stage. On a signal or at --time-limit a checkpoint is saved first;
    --load-checkpoint latest resumes it bit for bit.
    """
    from llmforge.train.run import Stopped, run_training

    finished = run_training(options)
    if "torch" in sys.modules:  # it is not where the run was finished already
        from llmforge.backends.common.processes import leave_processes

        leave_processes()
    if isinstance(finished, Stopped):
        if besides.json:
            show_json({"state": "stopped", **asdict(finished)})
        raise typer.Exit(besides.stopped_exit_code)
    if finished:
        show_finished(finished, besides.json)
