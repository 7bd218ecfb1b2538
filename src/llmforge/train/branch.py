"""The checkpoints of a save directory: which are whole, which belong to the run that continues, and which go.

    epoch-0_step-100/    a checkpoint of the run
    abandoned-1/         what was newer than the checkpoint from which a run continued: checkpoints under their names,
                         metrics.jsonl as it was then, and abandoned.json, which says what was moved and why

Nothing that is no checkpoint of llmforge is deleted, and no symbolic link is followed to delete anything.
"""

import json
import os
import shutil
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llmforge.console import say, warn
from llmforge.errors import UserError
from llmforge.steps import read_manifest, remove_tree, unrecorded_entries
from llmforge.steps.manifest import write_durably
from llmforge.steps.verify import changed_file
from llmforge.train.save_dir import ABANDONED, CHECKPOINT, METRICS, UNFINISHED
from llmforge.train.states import read_schedule, read_states

STEP = "train-checkpoint"
MOVING, RECORD = "moving.json", "abandoned.json"


def checkpoints(save_dir: Path) -> list[Path]:
    """Published checkpoints of `save_dir` (or links to some), whole or damaged, in the order of their steps."""
    return sorted((path for path in _named(save_dir) if path.is_dir()), key=_order)


def damage(path: Path, *, contents: bool = True) -> str | None:
    """What is wrong with the checkpoint `path`, or None: its manifest, the sizes and (with `contents`) all bytes of its
    files, and the fields of its states.
    """
    try:
        manifest = read_manifest(path, STEP)
        if not manifest.files:
            return f"{path / 'llmforge.json'} names no files"
        if changed := changed_file(path, manifest, contents=contents):
            size = manifest.files[changed.relative_to(path).as_posix()]
            if not changed.is_file():
                return f"{changed} is missing"
            if changed.stat().st_size != size:
                return f"{changed} has {changed.stat().st_size:,} bytes instead of {size:,}"
            return f"{changed} does not have the content that was written"
        read_states(path)
        read_schedule(path)
    except (OSError, UserError) as error:
        return str(error).rstrip(".")
    return None


def find_checkpoint(save_dir: Path, wanted: str, *, contents: bool = True) -> Path | None:
    """The checkpoint that `--load-checkpoint wanted` means; `latest` skips damaged ones, None where
    there is none. `contents`: every byte is compared with its checksum.
    """
    if wanted != "latest":
        path = Path(wanted)
        if not path.is_dir():
            raise UserError(
                f"--load-checkpoint {path} is not a directory; give a checkpoint (epoch-E_step-S), a modeling folder or latest."
            )
        if problem := damage(path, contents=contents):
            raise UserError(
                f"--load-checkpoint {path} cannot be resumed: {problem}; --load-checkpoint latest takes the newest complete one of --output."
            )
        return path
    for path in reversed(checkpoints(save_dir)):
        problem = damage(path, contents=contents)
        if problem is None:
            return path
        warn(f"{path} is skipped: {problem}.")
    return None


def set_aside(save_dir: Path, resumed: Path | None) -> None:
    """Moves what is not of the run that continues from `resumed` (None: from its beginning) into `abandoned-N`: newer
    checkpoints, so that `latest` and --keep-last do not meet them again, and files or links that have the name of a
    checkpoint, which would be in its way.
    """
    names = sorted(path.name for path in _not_of_this_run(save_dir, resumed))
    if not names:
        return
    numbers = [int(m[1]) for path in save_dir.iterdir() if (m := ABANDONED.fullmatch(path.name))]
    target = save_dir / f"abandoned-{max(numbers, default=0) + 1}"
    target.mkdir()
    record = {
        "resumed": resumed.name if resumed else None,
        "moved": names,
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if (save_dir / METRICS).is_file():
        shutil.copyfile(save_dir / METRICS, target / METRICS)
    # Once this is written the move is decided: a run that is killed meanwhile ends it when it is started again.
    write_durably(target / MOVING, _as_bytes(record))
    _move(save_dir, target, names)
    past = f"resuming from {resumed}" if resumed else "starting again"
    say(f"{past}: {', '.join(names)} of {save_dir} {'is' if len(names) == 1 else 'are'} moved to {target}.")


def finish_setting_aside(save_dir: Path) -> None:
    """Ends a move that was cut short."""
    for target in sorted(path for path in save_dir.iterdir() if ABANDONED.fullmatch(path.name)):
        if target.is_symlink() or not (target / MOVING).is_file():
            continue
        try:
            record = json.loads((target / MOVING).read_bytes())
            names = [str(name) for name in record["moved"]]
        except (ValueError, RecursionError, LookupError, TypeError) as error:
            raise UserError(
                f"{target / MOVING} is damaged ({error}); move the checkpoints that are newer than the one to resume "
                f"into {target} yourself, and delete that file."
            ) from error
        _move(save_dir, target, [name for name in names if Path(name).name == name])


def _move(save_dir: Path, target: Path, names: list[str]) -> None:
    for name in names:
        if os.path.lexists(save_dir / name) and not os.path.lexists(target / name):
            (save_dir / name).rename(target / name)
    (target / MOVING).rename(target / RECORD)


def _not_of_this_run(save_dir: Path, resumed: Path | None) -> Iterator[Path]:
    ours = resumed is not None and resumed.resolve().parent == save_dir.resolve()
    for path in _named(save_dir):
        if (
            resumed is None
            or not ours
            or (
                path.resolve() != resumed.resolve() and (not path.is_dir() or _order(path) >= _order(resumed))
            )
        ):
            yield path
    for path in save_dir.iterdir():
        if UNFINISHED.fullmatch(path.name) and (path.is_symlink() or not path.is_dir()):
            yield path


def remove_old(save_dir: Path, keep: int, written: Path) -> None:
    """Deletes all but the last `keep` complete checkpoints of the run that has just written `written`."""
    ours = [
        path
        for path in checkpoints(save_dir)
        if _order(path) <= _order(written) and (path == written or damage(path, contents=False) is None)
    ]
    for path in ours[:-keep]:
        if path.is_symlink():
            continue  # what it points to is somewhere else, and may be needed there
        if foreign := unrecorded_entries(path, read_manifest(path)):
            warn(
                f"--keep-last keeps {path}, which contains files that llmforge did not write ({foreign[0].name})."
            )
            continue
        try:
            # Hidden first: a deletion cut short must not look like a damaged checkpoint.
            remove_tree(path.rename(path.with_name(f".{path.name}.removed")))
        except (OSError, UserError) as error:
            warn(f"--keep-last could not delete {path} ({error}).")


def remove_partial(save_dir: Path) -> None:
    """Deletes what an interrupted save or deletion left behind."""
    for path in save_dir.iterdir():
        if UNFINISHED.fullmatch(path.name) and not path.is_symlink() and path.is_dir():
            remove_tree(path)


def _named(save_dir: Path) -> list[Path]:
    """Whatever in `save_dir` has the name of a checkpoint."""
    return [path for path in save_dir.iterdir() if CHECKPOINT.fullmatch(path.name)]


def _order(path: Path) -> tuple[int, int]:
    """(step, epoch) from the name of a checkpoint."""
    match = CHECKPOINT.fullmatch(path.name)
    return (int(match[2]), int(match[1])) if match else (-1, -1)


def _as_bytes(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()
