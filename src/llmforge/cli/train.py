"""`llmforge train`."""

import sys
from dataclasses import asdict

import typer

from llmforge.cli.command import example
from llmforge.cli.results import show_finished
from llmforge.console import show_json
from llmforge.train.options import TrainCommandOptions, TrainOptions


@example(
    "llmforge train --model work/model --data data/zh-en --output stage-1",
    "--trainable new-embeddings --learning-rate 1e-3 --micro-batch-size 4 --gradient-accumulation-steps 8",
)
def train(options: TrainOptions, besides: TrainCommandOptions) -> None:
    """Continue pretraining a model on packed rows: one stage, exact to resume.

    Every option may also stand in a YAML file (--config); the command line wins. The final model is
    OUTPUT/modeling, which the next stage takes as --model. A signal or --time-limit stops it after a checkpoint.
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
