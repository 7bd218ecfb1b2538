"""What lies in the directory of a training, and what of it is llmforge's: `--overwrite` deletes nothing else."""

import json
import re
from pathlib import Path

from llmforge.errors import UserError
from llmforge.workspace import MANIFEST, empty_directory, read_manifest, unrecorded_entries

RUN_FILE = "run.json"
MODELING = "modeling"
CONFIG_FILE = "train-config"  # what --config-file names is written by
CHECKPOINT = re.compile(r"epoch-\d+_step-\d+")
UNFINISHED = re.compile(rf"\.(?:{CHECKPOINT.pattern}|{MODELING})\.(?:partial|removed|replaced)")
FILES = re.compile(
    rf"{re.escape(RUN_FILE)}|{re.escape(MANIFEST)}|config\.yaml|metrics\.jsonl|\.wandb-id"
    r"|\.(?:run\.json|metrics\.jsonl|llmforge\.json)\.tmp"
)
BOARD = "events.out.tfevents."


def is_training(save_dir: Path) -> bool:
    """Whether `llmforge train` began to write `save_dir`: by what its `run.json` or a checkpoint holds, not by a name."""
    if save_dir.is_symlink() or not save_dir.is_dir():
        return False
    try:
        run = json.loads((save_dir / RUN_FILE).read_text(encoding="utf-8"))
        if isinstance(run, dict) and run.get("step") == "train" and isinstance(run.get("arguments"), dict):
            return True
    except (OSError, ValueError, RecursionError):
        pass
    return any(_is_checkpoint(path) for path in save_dir.iterdir() if CHECKPOINT.fullmatch(path.name))


def refuse_foreign(save_dir: Path) -> None:
    """Raises `UserError` where `save_dir` holds what a training does not write: it would be deleted with it."""
    foreign = sorted(
        one.relative_to(save_dir).as_posix() for path in save_dir.iterdir() for one in _foreign(path)
    )
    if foreign:
        more = f" and {len(foreign) - 3:,} more" if len(foreign) > 3 else ""
        raise UserError(
            f"{save_dir} holds what llmforge train did not write ({', '.join(foreign[:3])}{more}); move it away, then "
            "--overwrite replaces the rest."
        )


def remove_training(save_dir: Path) -> None:
    """Deletes what a training wrote into `save_dir`; `UserError`, and nothing is deleted, where anything else is there."""
    refuse_foreign(save_dir)
    empty_directory(save_dir)


def is_result(name: str) -> bool:
    """Whether the file `name` of a finished training belongs to its result, as its checkpoints do not."""
    top = name.split("/", 1)[0]
    return not CHECKPOINT.fullmatch(top) and top != "wandb" and not top.startswith(".")


def _foreign(path: Path) -> list[Path]:
    """What llmforge did not write of `path`, an entry of a save directory."""
    if path.is_symlink() or not path.is_dir():
        return [] if path.is_file() and not path.is_symlink() and FILES.fullmatch(path.name) else [path]
    if path.name == "tensorboard":
        return [file for file in path.rglob("*") if not file.name.startswith(BOARD) and not file.is_dir()]
    if path.name == "wandb" or UNFINISHED.fullmatch(path.name):
        return []
    if path.name != MODELING and not CHECKPOINT.fullmatch(path.name):
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
