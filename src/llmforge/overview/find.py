"""What lies at paths that a report is asked about."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llmforge.errors import UserError, missing
from llmforge.overview.training import holds_training
from llmforge.steps import MANIFEST, Manifest, manifest_path, read_manifest

DEEPEST = 3  # directories below a given one
BESIDE = f".{MANIFEST}"  # the end of the name of a file's manifest


@dataclass
class Found:
    """Directories of trainings, and files of evaluate and generate with their manifests."""

    trainings: list[Path] = field(default_factory=list)
    tables: list[tuple[Path, Manifest]] = field(default_factory=list)
    texts: list[tuple[Path, Manifest]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.trainings) + len(self.tables) + len(self.texts)

    def add(self, path: Path, strict: bool) -> None:
        """Takes in the file `path` of a step; one of other steps is left out, or refused if `strict`."""
        try:
            manifest = read_manifest(path)
        except UserError as error:
            if strict:
                raise
            self.problems.append(str(error))
            return
        kinds = {"evaluate": self.tables, "generate": self.texts}
        if manifest.step in kinds:
            kinds[manifest.step].append((path, manifest))
        elif strict:
            raise UserError(
                f"{path} is an output of llmforge {manifest.step}; give those of train, train-preferences, evaluate or generate."
            )


def find(paths: Iterable[Path]) -> Found:
    """What `paths` hold, each once, in the order of `paths`. Raises `UserError` where one of them holds nothing to report."""
    found, seen = Found(), set[Path]()
    for path in paths:
        if not path.exists():
            raise missing(path)
        before, known = len(found), set(seen)
        below = [path] if path.is_file() or holds_training(path.resolve()) else list(_below(path, DEEPEST))
        for one in below:
            if (real := one.resolve()) in seen:
                continue
            seen.add(real)
            if one.is_dir():
                found.trainings.append(one)
            else:
                found.add(one, strict=one == path)
        if len(found) == before and not any(one.resolve() in known for one in below):
            raise UserError(
                f"{path} holds no training, no table of evaluate and no text of generate; give an --output of theirs, or a "
                "directory that contains some."
            )
    return found


def _below(directory: Path, depth: int) -> Iterator[Path]:
    """Trainings, and files that have a manifest, in and below `directory`. Hidden names, links, and directories that are
    outputs of other steps are left out.
    """
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        if entry.is_dir():
            if holds_training(path):
                yield path
            elif depth and not manifest_path(path).is_file():
                yield from _below(path, depth - 1)
        elif entry.is_file() and entry.name.endswith(BESIDE):
            made = path.with_name(entry.name.removesuffix(BESIDE))
            if made.is_file() and not made.is_symlink():
                yield made
