"""`llmforge train`."""

import inspect
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from llmforge.cli.options import Debug, StoppedExitCode, example, paths, show_finished
from llmforge.console import show_json
from llmforge.train.options import TrainConfig, dashed, default_of, hints, make_config, optional


@example(
    "llmforge train --pretrained grown --dataset data/arrow --save-dir stage-1",
    "--trainable new-embeddings --lr 1e-3 --micro-batch-size 4 --accumulation-steps 8",
)
def train(
    config: Path | None = None,
    as_json: bool = False,
    stopped_exit_code: int = 0,
    debug: bool = False,
    **flags: Any,
) -> None:
    """Continue pretraining a model on packed rows: one stage, exact to resume.

    Every flag may also stand in a YAML file (--config); the command line wins. The final model is
    SAVE_DIR/modeling, which the next stage takes as --pretrained. A signal or --time-limit stops it after a checkpoint.
    """
    from llmforge.train.run import Stopped, run_training

    finished = run_training(read_flags(config, **flags))
    if "torch" in sys.modules:  # it is not where the run was finished already
        from llmforge.backends.common.processes import leave_processes

        leave_processes()
    if isinstance(finished, Stopped):
        if as_json:
            show_json({"state": "stopped", **asdict(finished)})
        raise typer.Exit(stopped_exit_code)
    if finished:
        show_finished(finished, as_json)


def read_flags(config: Path | None, **flags: Any) -> TrainConfig:
    """The configuration that the options of the command and the YAML file `config` mean."""
    for name in ("dataset", "holdout"):
        flags[name] = paths([str(word) for word in flags[name] or []])
    return make_config(flags, config)


def _signature() -> inspect.Signature:
    """Every field of TrainConfig as an option that is None where it is not given; then the options of the
    command.
    """
    parameters = []
    for entry in fields(TrainConfig):
        kind, _ = optional(hints()[entry.name])
        default = default_of(entry)
        shown = (
            ""
            if default is None or "(default" in entry.metadata["help"]
            else f" (default: {str(default).lower() if default in (True, False) else default})"
        )
        names = [f"--{dashed(entry.name)}", *entry.metadata["names"]]
        if default is True:
            names = [f"--{dashed(entry.name)}/--no-{dashed(entry.name)}"]
        option = typer.Option(
            *names,
            help=entry.metadata["help"] + shown,
            rich_help_panel=entry.metadata["panel"],
            show_default=False,
        )
        annotation = Annotated[Optional[kind], option]  # type: ignore[valid-type] # noqa: UP045
        parameters.append(
            inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    config = Annotated[Optional[Path], typer.Option(help="YAML file of these flags.", show_default=False)]  # noqa: UP045
    as_json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
    for name, annotation, default in (
        ("config", config, None),
        ("as_json", as_json, False),
        ("stopped_exit_code", StoppedExitCode, 0),
        ("debug", Debug, False),
    ):
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    return inspect.Signature(parameters)


_train: Any = train
_train.__signature__ = _signature()
_train.__annotations__ = {n: p.annotation for n, p in _train.__signature__.parameters.items()}
