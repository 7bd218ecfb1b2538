"""`llmforge train` from the outside: a finished run says so, a foreign one is refused, before torch is
imported.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge import hub
from llmforge.console import say, show
from llmforge.corpus import labeled
from llmforge.errors import DISK_FULL, UserError
from llmforge.options import options_of
from llmforge.steps import (
    Finished,
    Input,
    Manifest,
    Step,
    check_apart,
    check_report,
    find_finished,
    fingerprint_json,
    manifest_path,
    read_inputs,
    read_manifest,
    record_files,
    refuse_link,
    require_whole,
    write_manifest,
)
from llmforge.steps.manifest import write_durably
from llmforge.train.interrupts import end_with_launcher
from llmforge.train.options import TrainOptions
from llmforge.train.save_dir import (
    CONFIG_FILE,
    MODELING,
    RUN_FILE,
    is_modeling,
    is_result,
    is_training,
    recorded_arguments,
    refuse_foreign,
    refuse_obstacles,
    remove_training,
)
from llmforge.weights.absent import not_a_model


@dataclass(frozen=True)
class Stopped:
    """A training that was asked to stop (`reason`: a signal or --time-limit) after `step` of `total` steps; `checkpoint`
    is what --load-checkpoint latest continues with, None where there is none.
    """

    save_dir: Path
    reason: str
    step: int
    total: int
    checkpoint: Path | None


def run_training(config: TrainOptions) -> Finished | Stopped | None:
    """Trains, or recognizes the finished training.

    None for --dry-run and on every process but the first. Raises `UserError` before
    anything is loaded where the save directory does not allow the run.
    """
    end_with_launcher()
    weights = weights_to_start_from(config)
    if not (weights / "config.json").is_file():
        raise not_a_model(weights, "--model")
    roots, parts = dataset_roots(config.data)
    emptied = [Path(config.load_checkpoint)] if config.overwrite and config.load_checkpoint else []
    source = config.retention.source_model
    roots += [hub.local(source)] if source else []
    roots += dataset_roots(config.retention.protect_source, "--protect-source")[0]
    asked = [path for _, path in labeled(config.questions.eval_tasks)]
    check_apart(config.output, [weights, *roots, *config.eval_data, *asked, *emptied], "train")
    arguments = {**config.arguments(), "parts": parts}
    finished = manifest_path(config.output).is_file()
    is_main = os.environ.get("RANK", "0") == "0"
    inputs: list[Input] = []
    if is_main:  # one process reads what all of them need
        step = Step(
            "train",
            config.output,
            arguments,
            [weights, *roots],
            overwrite=config.overwrite,
            verify=None if config.verify else False,
        )
        inputs = read_inputs(step)
        ours = is_training(config.output)
        if ours and config.overwrite:
            refuse_foreign(config.output)  # no manifest of a training lists its checkpoints
        elif (finished or not ours) and (done := find_finished(step, inputs)):
            return done
        if ours and not finished and not config.overwrite:
            _check_unfinished(config, arguments)
    elif finished and not config.overwrite:
        return None
    if config.dry_run:
        if is_main:
            _show_plan(config, weights)
        return None
    if is_main:
        _check_places(config)
        if config.verify:
            require_whole(weights)
    from llmforge.train.setup import Ranks, set_up
    from llmforge.train.trainer import Trainer
    from llmforge.weights.directory import ModelDirectory

    with _naming(config.output), _locked(config, arguments) if is_main else _nothing():
        with Ranks.joined(config) as ranks:
            with ranks.processes.naming_the_lost():
                trainer = Trainer(config, set_up(config, ModelDirectory(weights), ranks), ranks)
            metrics = trainer.run()
        if not is_main:
            return None
        if metrics is None:
            _, checkpoint = trainer.last_save
            at = trainer.position.step
            return Stopped(config.output, str(trainer.stopping), at, trainer.total, checkpoint)
        model = read_manifest(config.output / MODELING).outputs
        outputs = {
            **model,
            **record_files(config.output, counts=is_result),
            "fingerprint": model["fingerprint"],
            "model": MODELING,
        }
        record = Manifest("train", arguments, inputs, outputs, metrics)
        return Finished(config.output, write_manifest(manifest_path(config.output), record), skipped=False)


@contextmanager
def _naming(output: Path) -> Iterator[None]:
    """Names the directory where a disk is full: an error of writing to an open file names nothing."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL and not error.filename:
            error.filename = os.fspath(output)
        raise


def weights_to_start_from(config: TrainOptions) -> Path:
    """The model directory that training starts from: --model, or the modeling folder of
    --load-checkpoint.
    """
    if config.load_checkpoint and is_modeling(Path(config.load_checkpoint)):
        return Path(config.load_checkpoint)
    return hub.local(config.model)


def dataset_roots(datasets: list[Path], flag: str = "--data") -> tuple[list[Path], list[str]]:
    """The outputs of prepare-data to which the directories belong, and which parts of them were named."""
    roots, parts = [], []
    for path in datasets:
        if not path.is_dir():
            raise UserError(f"{flag} {path} is not a directory; give the output of llmforge prepare-data.")
        resolved = path.resolve()
        root = next((d for d in (resolved, *resolved.parents[:2]) if manifest_path(d).is_file()), resolved)
        roots.append(root if root != resolved else path)
        parts.append(resolved.relative_to(root).as_posix())
    return roots, parts


def _check_unfinished(config: TrainOptions, arguments: dict[str, Any]) -> None:
    if not config.load_checkpoint:
        raise UserError(
            f"{config.output} contains an unfinished training; "
            "--load-checkpoint latest resumes it, --overwrite starts again."
        )
    old = recorded_arguments(config.output)
    if old is None:
        say(f"note: {config.output / RUN_FILE} is damaged; the options of the run cannot be compared.")
        return
    flags = {one.argument: one.flag for one in options_of(TrainOptions)}
    for key in sorted({*old, *arguments}):
        if fingerprint_json(old.get(key)) != fingerprint_json(arguments.get(key)):
            say(
                f"note: {flags.get(key, key)} is now {arguments.get(key)}; the run was started with {old.get(key)}."
            )


def _show_plan(config: TrainOptions, weights: Path) -> None:
    from llmforge.train.plan import make_plan
    from llmforge.weights.directory import ModelDirectory

    show(make_plan(config, ModelDirectory(weights)).render())


@contextmanager
def _locked(config: TrainOptions, arguments: dict[str, Any]) -> Iterator[None]:
    """The save directory, made or emptied, and locked against a second training; `run.json` marks it as
    ours.
    """
    save_dir = config.output
    refuse_link(save_dir, "--output")
    try:
        save_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(save_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _unwritable("--output", save_dir, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            if config.overwrite:
                remove_training(save_dir)
            refuse_obstacles(save_dir)
            record = json.dumps({"step": "train", "arguments": arguments}, indent=2) + "\n"
            write_durably(save_dir / RUN_FILE, record.encode())
        except OSError as error:
            raise _unwritable("--output", save_dir, error) from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # deleted meanwhile
                if {entry.name for entry in save_dir.iterdir()} == {RUN_FILE}:  # refused before it began
                    shutil.rmtree(save_dir)
    except BlockingIOError:
        raise UserError(
            f"another llmforge process is training into {save_dir}; choose another --output."
        ) from None
    finally:
        os.close(descriptor)


def _check_places(config: TrainOptions) -> None:
    """That what goes elsewhere than --output can be written, before anything is loaded."""
    file, board = config.config_file, config.tensorboard_dir
    for flag, directory in (("--config-file", file and file.parent), ("--tensorboard-dir", board)):
        if directory:
            try:
                directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _unwritable(flag, directory, error) from error
            if not os.access(directory, os.W_OK):
                raise _unwritable(flag, directory, PermissionError(0, "no permission"))
    if file:
        check_report(file, CONFIG_FILE, "--config-file")


def _unwritable(flag: str, path: Path, error: OSError) -> UserError:
    return UserError(f"{flag} {path} cannot be written ({error.strerror}); choose another.")


@contextmanager
def _nothing() -> Iterator[None]:
    yield
