"""What lies in the directory of a training, and what of it is llmforge's: `--overwrite` deletes nothing else."""

import json
import os
import re
from pathlib import Path
from typing import Any

from llmforge.errors import UserError
from llmforge.sizes import refuse_special
from llmforge.steps import MANIFEST, empty_directory, read_manifest, unrecorded_entries
from llmforge.weights.files import ADAPTER_FOLDER

RUN_FILE = "run.json"
MODELING = "modeling"
AVERAGE = "ema"  # the moving average of --ema
MODELS = (
    MODELING,
    AVERAGE,
    ADAPTER_FOLDER,
)  # what a checkpoint holds to be used, and the end of a run beside it
CONFIG_FILE = "train-config"  # what --config-file names is written by
METRICS = "metrics.jsonl"
CHECKPOINT = re.compile(r"epoch-(\d+)_step-(\d+)")
UNFINISHED = re.compile(rf"\.(?:{CHECKPOINT.pattern}|{'|'.join(MODELS)})\.(?:partial|removed|replaced)")
FILES = re.compile(
    rf"{re.escape(RUN_FILE)}|{re.escape(MANIFEST)}|config\.yaml|metrics\.jsonl|bad_rows\.jsonl"
    r"|\.wandb-id|\.ranks|\.(?:run\.json|metrics\.jsonl|llmforge\.json|config\.yaml|\.ranks)\.tmp"
)
ABANDONED = re.compile(r"abandoned-(\d+)")
RECORDS = ("abandoned.json", "moving.json", METRICS, ".moving.json.tmp")
# Whether each is a directory.
ENTRIES = {
    **dict.fromkeys((RUN_FILE, MANIFEST, "config.yaml", METRICS, "bad_rows.jsonl"), False),
    **dict.fromkeys((*MODELS, "tensorboard", "wandb"), True),
}
BOARD = "events.out.tfevents."


def is_training(save_dir: Path) -> bool:
    """Whether `llmforge train` began to write `save_dir`: by what its `run.json` or a checkpoint holds, not by a name."""
    if save_dir.is_symlink() or not save_dir.is_dir():
        return False
    if recorded_arguments(save_dir) is not None:
        return True
    return any(_is_checkpoint(path) for path in save_dir.iterdir() if CHECKPOINT.fullmatch(path.name))


def recorded_arguments(save_dir: Path) -> dict[str, Any] | None:
    """The arguments with which the run of `save_dir` was started; None where its `run.json` is missing or damaged."""
    try:
        run = json.loads(refuse_special(save_dir / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(run, dict) and run.get("step") == "train" and isinstance(run.get("arguments"), dict)
    return run["arguments"] if ours else None


def refuse_obstacles(save_dir: Path) -> None:
    """Raises `UserError` where a link or anything else has the name of what a training writes there."""
    for name, directory in ENTRIES.items():
        path = save_dir / name
        fits = not os.path.lexists(path) or (path.is_dir() if directory else path.is_file())
        if path.is_symlink() or not fits:
            raise UserError(f"{path} exists and was not created by llmforge; move it away.")


def refuse_foreign(save_dir: Path) -> None:
    """Raises `UserError` where `save_dir` holds what a training does not write: it would be deleted with it."""
    foreign = sorted(
        one.relative_to(save_dir).as_posix() for path in save_dir.iterdir() for one in _foreign(path)
    )
    if foreign:
        more = f" and {len(foreign) - 3:,} more" if len(foreign) > 3 else ""
        raise UserError(
            f"{save_dir} contains files that llmforge train did not write ({', '.join(foreign[:3])}{more}); move it away, then "
            "--overwrite replaces the rest."
        )


def remove_training(save_dir: Path) -> None:
    """Deletes what a training wrote into `save_dir`; `UserError`, and nothing is deleted, where anything else is there."""
    refuse_foreign(save_dir)
    empty_directory(save_dir)


def is_result(name: str) -> bool:
    """Whether the file `name` of a finished training belongs to its result, as its checkpoints do not."""
    top = name.split("/", 1)[0]
    hidden = top.startswith(".") or top == "wandb"
    return not (hidden or CHECKPOINT.fullmatch(top) or ABANDONED.fullmatch(top))


def _foreign(path: Path) -> list[Path]:
    """What llmforge did not write of `path`, an entry of a save directory."""
    if path.is_symlink() or not path.is_dir():
        return [] if path.is_file() and not path.is_symlink() and FILES.fullmatch(path.name) else [path]
    if path.name == "tensorboard":
        return [file for file in path.rglob("*") if not file.name.startswith(BOARD) and not file.is_dir()]
    if path.name == "wandb" or UNFINISHED.fullmatch(path.name):
        return []
    if ABANDONED.fullmatch(path.name):
        inner = [one for one in path.iterdir() if one.name not in RECORDS]
        return [one for entry in inner for one in _foreign(entry)]
    if path.name not in MODELS and not CHECKPOINT.fullmatch(path.name):
        return [path]
    try:
        return unrecorded_entries(path, read_manifest(path))
    except UserError:  # damaged, or somebody's
        return [path]


def _is_checkpoint(path: Path) -> bool:
    try:
        return not path.is_symlink() and read_manifest(path).step == "train-checkpoint"
    except UserError:
        return False


def is_modeling(path: Path) -> bool:
    """Whether `path` holds weights alone: a model directory, not a checkpoint with running states."""
    return path.is_dir() and (path / "config.json").is_file() and not (path / "running_states.json").is_file()
