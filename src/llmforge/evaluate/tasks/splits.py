"""Subjects and splits from the names of files: `dev/law_dev.csv`, `law_test.csv`, `law/dev-00000-of-00001.parquet`."""

import re
from collections.abc import Sequence
from pathlib import Path

from llmforge.errors import UserError

_NAMES = {
    "dev": "dev",
    "auxiliary_train": "train",  # MMLU's, questions of other sets
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_SHARD = r"(?:-\d{5}-of-\d{5})?"
_ALONE = re.compile(rf"({'|'.join(_NAMES)}){_SHARD}", re.IGNORECASE)
_BEHIND = re.compile(rf"(.+)[_-]({'|'.join(_NAMES)}){_SHARD}", re.IGNORECASE)
MEASURED = (
    "test",
    "val",
    "",
    "dev",
    "train",
)  # the first of these that a subject has is what it is measured on
SHOWN = ("dev", "train", "val")  # the first of these but the measured one has its shots
WHOLE = ""  # the split of a file whose name tells none
MOST_FILES = 10_000
# What stands beside questions and is none.
DESCRIPTIONS = ("dataset_info", "subject_mapping", "llmforge")

Splits = dict[str, dict[str, list[Path]]]


def find(path: Path, suffixes: Sequence[str]) -> Splits:
    """`found[subject][split]` are files. A file stands for its subject, with the files of other splits beside it."""
    if path.is_file():
        subject, split = _named(path, path.parent)
        return {subject: {**_beside(path, subject, split), split: [path]}}
    found: Splits = {}
    files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in suffixes and file.is_file()]
    if len(files) > MOST_FILES:
        raise UserError(f"{path} has {len(files):,} files, which no task has; give the task's own directory.")
    for file in files:
        if any(part.startswith(".") for part in file.relative_to(path).parts) or (
            file.suffix == ".json" and file.name.startswith(DESCRIPTIONS)
        ):
            continue
        subject, split = _named(file, path)
        found.setdefault(subject, {}).setdefault(split, []).append(file)
    return found


def files_of(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """Every file of `find`; for telling layouts apart."""
    return [
        file
        for parts in find(path, suffixes).values()
        for group in parts.values()
        for file in group
        if file.suffix.lower() in suffixes
    ]


def choose(
    splits: dict[str, list[Path]], measured: Sequence[str] = MEASURED
) -> tuple[list[Path], list[Path], str]:
    """(files to be measured, files with the shots, name of the measured split) of one subject."""
    name = next(name for name in (*measured, *splits) if name in splits)
    shown = next((splits[one] for one in SHOWN if one in splits and one != name), [])
    return splits[name], shown, name


def _named(file: Path, root: Path) -> tuple[str, str]:
    """(subject, split) of a file below `root`."""
    parents = [] if file.parent == root else list(reversed(file.relative_to(root).parts[:-1]))
    folder = next((_NAMES[part.lower()] for part in parents if part.lower() in _NAMES), None)
    if folder is None and root.name.lower() in _NAMES:
        folder = _NAMES[root.name.lower()]
    if alone := _ALONE.fullmatch(file.stem):
        names = [part for part in parents if part.lower() not in (*_NAMES, "data")]
        return (names[0] if names else root.resolve().name), _NAMES[alone[1].lower()]
    if behind := _BEHIND.fullmatch(file.stem):
        return behind[1], _NAMES[behind[2].lower()]
    return file.stem, folder or WHOLE


def _beside(path: Path, subject: str, split: str) -> dict[str, list[Path]]:
    """Files of the same subject in other splits, in the same folder or in the folder of the split."""
    found: dict[str, list[Path]] = {}
    above = path.parent.parent
    for word, name in _NAMES.items():
        near = [path.with_name(f"{subject}{joint}{word}{path.suffix}") for joint in "_-"]
        if _ALONE.fullmatch(path.stem):
            near += [path.with_name(path.stem.replace(_ALONE.fullmatch(path.stem)[1], word) + path.suffix)]  # type: ignore[index]
        if path.parent.name.lower() in _NAMES:
            near += [above / word / f"{subject}{end}{path.suffix}" for end in (f"_{word}", "")]
        if name != split and name not in found and (file := next((f for f in near if f.is_file()), None)):
            found[name] = [file]
    return found
