"""Checkpoints: written into a hidden sibling, completed by their manifest, and published in one rename.

SAVE_DIR/epoch-0_step-100/{modeling/, optimizer/, lr_scheduler/, running_states.json, llmforge.json}
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmforge.console import warn
from llmforge.engine.protocol import Snapshot
from llmforge.errors import UserError
from llmforge.model.config import portable, read_config
from llmforge.train.save_dir import MODELING
from llmforge.train.schedule import Schedule
from llmforge.workspace import Manifest, manifest_path, publish, read_manifest, record_files, write_manifest

CHECKPOINT = re.compile(r"epoch-(\d+)_step-(\d+)")
STEP = "train-checkpoint"
MODEL_STEP = "train-model"
STATES = "running_states.json"
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "llmforge.json")


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds besides the engine's own state.

    `origin` gives the model's other files (configuration, tokenizer, licence), `identity` the outputs of its
    manifest, `states` is running_states.json.
    """

    origin: Path
    identity: dict[str, Any]
    states: dict[str, Any]
    schedule: Schedule


def write_checkpoint(path: Path, snapshot: Snapshot, contents: Contents, is_main: bool) -> None:
    """Publishes the checkpoint `path`; called on every rank. A `UserError` says why it could not be
    written.
    """
    partial = path.with_name(f".{path.name}.partial")
    stages: tuple[tuple[bool, Callable[[], None]], ...] = (
        (is_main, lambda: _prepare(partial)),
        (True, lambda: snapshot.write_model(partial / MODELING)),
        (True, lambda: snapshot.write_state(partial / "optimizer")),
        (is_main, lambda: _complete(partial, path, contents)),
    )
    for mine, write in stages:
        problem: Exception | None = None
        try:
            if mine:
                write()
        except Exception as error:  # every library that writes has errors of its own for a full disk
            problem = error
        if not snapshot.agree(problem is None):
            if is_main:
                shutil.rmtree(partial, ignore_errors=True)
            reason = " ".join(str(problem or "another process failed").split())[:300]
            raise UserError(f"{path} could not be written: {reason}.") from problem


def _prepare(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    for name in (MODELING, "optimizer", "lr_scheduler"):
        (partial / name).mkdir(parents=True)


def _complete(partial: Path, path: Path, contents: Contents) -> None:
    finish_model(partial / MODELING, contents.origin, contents.identity)
    (partial / "lr_scheduler" / "schedule.json").write_text(
        json.dumps(asdict(contents.schedule), indent=2) + "\n"
    )
    (partial / STATES).write_text(json.dumps(contents.states, indent=2) + "\n")
    for file in sorted(partial.rglob("*")):
        if file.is_file():
            _sync(file)
    metrics = {"step": contents.states["position"]["step"]}
    write_manifest(manifest_path(partial), Manifest(STEP, {}, outputs=record_files(partial), metrics=metrics))
    publish(partial, path)


def finish_model(directory: Path, origin: Path, identity: dict[str, Any]) -> None:
    """Makes a model directory of weights: configuration, tokenizer, licence of `origin`, and the manifest."""
    for file in sorted(origin.iterdir()):
        if (
            file.is_file()
            and not file.name.startswith(".")
            and not any(file.match(pattern) for pattern in WEIGHT_FILES)
        ):
            shutil.copyfile(file, directory / file.name)
    config = {**portable(read_config(directory)), "torch_dtype": "float32"}
    config.pop("dtype", None)
    (directory / "config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    outputs = {**identity, **record_files(directory)}
    write_manifest(manifest_path(directory), Manifest(MODEL_STEP, {}, outputs=outputs))


def link_model(checkpoint: Path, target: Path) -> None:
    """Makes `target` of the `modeling` folder of a checkpoint, sharing the files where the file system
    can.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(checkpoint / MODELING, partial, copy_function=os.link)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(checkpoint / MODELING, partial)
    publish(partial, target)


def checkpoints(save_dir: Path) -> list[Path]:
    """Published checkpoints of `save_dir`, oldest first."""
    found = [
        (tuple(map(int, m.groups())), path)
        for path in save_dir.iterdir()
        if (m := CHECKPOINT.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def damage(path: Path) -> str | None:
    """What is wrong with the checkpoint `path`, or None: its manifest and the sizes of all files."""
    try:
        manifest = read_manifest(path, STEP)
    except UserError as error:
        return str(error).rstrip(".")
    for name, size in manifest.outputs["files"].items():
        file = path / name
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != size:
            return f"{file} has {file.stat().st_size:,} bytes instead of {size:,}"
    return None


def find_checkpoint(save_dir: Path, wanted: str) -> Path | None:
    """The checkpoint that `--load-checkpoint wanted` means; `latest` passes over damaged ones, None where
    there is none.
    """
    if wanted != "latest":
        path = Path(wanted)
        if not path.is_dir():
            raise UserError(
                f"--load-checkpoint {path} is not a directory; give a checkpoint (epoch-E_step-S), a modeling folder or latest."
            )
        if problem := damage(path):
            raise UserError(
                f"--load-checkpoint {path} cannot be resumed: {problem}; latest takes the newest whole one of --save-dir."
            )
        return path
    for path in reversed(checkpoints(save_dir)):
        problem = damage(path)
        if problem is None:
            return path
        warn(f"{path} is passed over: {problem}.")
    return None


def read_states(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((path / STATES).read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"{path / STATES} is damaged ({error}); resume from another checkpoint.") from error


def remove_old(save_dir: Path, keep: int) -> None:
    """Deletes all but the last `keep` checkpoints."""
    for path in checkpoints(save_dir)[:-keep]:
        # Hidden first: a deletion cut short must not look like a damaged checkpoint.
        shutil.rmtree(path.rename(path.with_name(f".{path.name}.removed")))


def remove_partial(save_dir: Path) -> None:
    """Deletes what an interrupted save or deletion left behind."""
    for path in save_dir.glob(".epoch-*"):
        shutil.rmtree(path)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
