"""Checkpoints: written into a hidden sibling, completed by their manifest, and published in one rename.

OUTPUT/epoch-0_step-100/{modeling/, ema/ (with --ema), adapter/ (with --trainable lora), optimizer/, lr_scheduler/,
running_states.json, llmforge.json}
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from llmforge.backends.base import Snapshot
from llmforge.errors import UserError
from llmforge.steps import (
    Manifest,
    free_bytes,
    manifest_path,
    publish,
    record_files,
    remove_tree,
    write_manifest,
)
from llmforge.steps.checksums import checksum
from llmforge.train.branch import STEP
from llmforge.train.save_dir import AVERAGE, MODELING
from llmforge.train.schedule import Schedule
from llmforge.train.states import SCHEDULE, STATES
from llmforge.weights.config import portable, read_config
from llmforge.weights.files import ADAPTER_FOLDER, ADAPTER_STEP, LEGAL_FILES, TOKENIZER_FILES
from llmforge.weights.write import enough_disk_space

MODEL_STEP = "train-model"


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds besides the engine's own state; nothing in it changes when training continues.

    `files`: the model's other files by name (configuration, tokenizer, license), held since the run began, as the
    source model may go away meanwhile. `identity`: the outputs of the model's manifest. `states`: the text of
    running_states.json after `step`.
    """

    files: Mapping[str, bytes]
    identity: Mapping[str, Any]
    states: str
    step: int
    schedule: Schedule


def write_checkpoint(path: Path, snapshot: Snapshot, contents: Contents, is_main: bool) -> None:
    """Publishes the checkpoint `path`; called on every rank. A `UserError` says why it could not be
    written.
    """
    partial = path.with_name(f".{path.name}.partial")
    stages: tuple[tuple[bool, Callable[[], None]], ...] = (
        (is_main, lambda: _prepare(partial, snapshot)),
        (True, lambda: snapshot.write_model(partial / MODELING)),
        *([(True, lambda: snapshot.write_average(partial / AVERAGE))] if snapshot.averaged else []),
        *([(True, lambda: snapshot.write_adapter(partial / ADAPTER_FOLDER))] if snapshot.adapted else []),
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
                shutil.rmtree(partial, ignore_errors=True)  # which follows no link
            reason = " ".join(str(problem or "another process failed").split())[:300]
            # A full disk has as many names as there are libraries that write; so the need is said whatever failed.
            need, free = snapshot.bytes(), free_bytes(path.parent)
            raise UserError(
                f"{path} could not be written: {reason}. It needs {need:,} bytes, and {free:,} "
                "are free on that disk."
            ) from problem


def _prepare(partial: Path, snapshot: Snapshot) -> None:
    _clear(partial)
    partial.mkdir()
    held = {AVERAGE: snapshot.averaged, ADAPTER_FOLDER: snapshot.adapted}
    for name in (MODELING, *(name for name, is_held in held.items() if is_held), "optimizer", "lr_scheduler"):
        (partial / name).mkdir()


def _complete(partial: Path, path: Path, contents: Contents) -> None:
    for name in (MODELING, AVERAGE):
        if (partial / name).is_dir():
            finish_model(partial / name, contents.files, contents.identity)
    if (partial / ADAPTER_FOLDER).is_dir():
        _finish_adapter(partial / ADAPTER_FOLDER, contents)
    (partial / SCHEDULE).write_text(json.dumps(asdict(contents.schedule), indent=2) + "\n")
    (partial / STATES).write_text(contents.states)
    for file in sorted(partial.rglob("*")):
        if file.is_file():
            _sync(file)
    outputs, metrics = record_files(partial), {"step": contents.step}
    for file in sorted(
        partial.glob("optimizer/.*")
    ):  # what torch.distributed.checkpoint reads first is hidden
        name = file.relative_to(partial).as_posix()
        outputs["files"][name], outputs["checksums"][name] = file.stat().st_size, checksum(file)
    write_manifest(manifest_path(partial), Manifest(STEP, {}, outputs=outputs, metrics=metrics))
    publish(partial, path)


def finish_model(directory: Path, files: Mapping[str, bytes], identity: Mapping[str, Any]) -> None:
    """Makes a model directory of weights: `files` (configuration, tokenizer, license), and the manifest."""
    for name, data in files.items():
        (directory / name).write_bytes(data)
    config = {**portable(read_config(directory)), "torch_dtype": "float32"}
    config.pop("dtype", None)
    (directory / "config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    outputs = {**identity, **record_files(directory)}
    write_manifest(manifest_path(directory), Manifest(MODEL_STEP, {}, outputs=outputs))


def _finish_adapter(directory: Path, contents: Contents) -> None:
    """Adds the tokenizer and the license to the files of peft, and the manifest."""
    for name, data in contents.files.items():
        if any(fnmatch(name, pattern) for pattern in (*TOKENIZER_FILES, *LEGAL_FILES)):
            (directory / name).write_bytes(data)
    outputs = {**contents.identity, **record_files(directory)}
    write_manifest(manifest_path(directory), Manifest(ADAPTER_STEP, {}, outputs=outputs))


def link_model(model: Path, target: Path) -> None:
    """Makes `target` of the model directory `model` of a checkpoint, sharing the files where the file system can."""
    partial = target.with_name(f".{target.name}.partial")
    _clear(partial)
    try:
        shutil.copytree(model, partial, copy_function=os.link)
    except OSError:
        _clear(partial)
        partial.mkdir()
        files = sorted(model.iterdir())
        with enough_disk_space(target, sum(file.stat().st_size for file in files)):
            for file in files:
                shutil.copyfile(file, partial / file.name)
    publish(partial, target)


def _clear(partial: Path) -> None:
    """Deletes what an interrupted attempt left at `partial`; `UserError` where a link or a file has its name."""
    if os.path.lexists(partial):
        remove_tree(partial)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
