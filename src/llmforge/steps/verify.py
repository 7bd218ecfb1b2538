"""Whether outputs are still what llmforge wrote, byte by byte."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llmforge.console import progress, say
from llmforge.errors import UserError, missing
from llmforge.steps.checksums import READERS, checksum
from llmforge.steps.manifest import MANIFEST, Manifest, manifest_path, read_manifest

LARGE_BYTES = 2 << 30  # from here on the user is shown how far it is


@dataclass(frozen=True)
class Verified:
    """What `verify_output` found: the `outputs` that were read, the number of `files` and `bytes` compared with their
    checksums, a sentence about each of the `problems`, outputs of which only sizes are recorded (`by_size`: the
    version before wrote no checksums), and files in them that llmforge did not write (`unrecorded`).
    """

    outputs: list[Path]
    files: int
    bytes: int
    problems: list[str]
    by_size: list[Path]
    unrecorded: list[Path]


def verify_output(path: Path) -> Verified:
    """Reads every byte of the outputs at and below `path` (a directory, or a file with its manifest beside it), and
    compares it with the checksums that were recorded when they were published.

    An output is that of any step, a checkpoint, a training with its checkpoints, or a directory of several outputs.
    `UserError` where there is none; damage raises nothing: it is in `problems`, each naming its file.
    """
    if not path.exists():
        raise missing(path)
    found = list(_outputs(path))
    if not found:
        raise UserError(
            f"{path} contains no output of llmforge (no {MANIFEST}): it is unfinished, or was not created by llmforge."
        )
    problems: list[str] = []
    by_size: list[Path] = []
    unrecorded: list[Path] = []
    wanted: dict[Path, str] = {}
    known: set[Path] = set()
    for output in found:
        if not output.exists():
            problems.append(f"{output} is missing")
            continue
        try:
            manifest = read_manifest(output)
        except UserError as error:
            problems.append(str(error).rstrip("."))
            continue
        known.add(manifest_path(output))
        if manifest.files and not manifest.checksums:
            by_size.append(output)
        for name, size in manifest.files.items():
            file = file_of(output, name)
            known.add(file)
            if problem := _misfit(file, size):
                problems.append(problem)
            elif name in manifest.checksums:
                wanted[file] = manifest.checksums[name]
        if output.is_dir():
            unrecorded += unrecorded_entries(output, manifest)
    total = sum(file.stat().st_size for file in wanted)
    for (file, recorded), made in zip(wanted.items(), _read_all(list(wanted), total), strict=True):
        if made != recorded:
            why = made if not made.startswith("xxh3:") else "it has the right size, but other bytes"
            problems.append(f"{file} is damaged ({why})")
    unrecorded = [one for one in unrecorded if one not in known]
    return Verified(found, len(wanted), total, list(dict.fromkeys(problems)), by_size, unrecorded)


def require_whole(path: Path) -> None:
    """Raises `UserError` naming the first damaged file if `path` is an output of llmforge that is not what was
    written, reading every byte of it. What llmforge did not write passes.
    """
    if not path.exists() or not manifest_path(path).is_file():
        return
    found = verify_output(path)
    for output in found.by_size:
        say(f"{output}: written by a version that recorded no checksums; its files have the recorded sizes.")
    if found.problems:
        raise UserError(f"{found.problems[0]}; run the command that wrote {path} again.")


def changed_file(output: Path, manifest: Manifest, *, contents: bool = True) -> Path | None:
    """The first recorded file of `output` that is missing, or has another size or (with `contents`) other bytes, if
    any. A file is read unless its checksum is remembered.
    """
    for name, size in manifest.files.items():
        file = file_of(output, name)
        if _misfit(file, size):
            return file
        if contents and name in manifest.checksums and checksum(file) != manifest.checksums[name]:
            return file
    return None


def file_of(output: Path, name: str) -> Path:
    """The file that a manifest of `output` calls `name`."""
    return output if output.is_file() else output / name


def unrecorded_entries(directory: Path, manifest: Manifest) -> list[Path]:
    """Files, links and empty directories in the output `directory` that its manifest does not name, hidden ones too."""
    names = {os.fsencode(name) for name in (*manifest.files, MANIFEST)}
    above = {name[:at] for name in names for at, sign in enumerate(name) if sign == ord("/")}
    found: list[Path] = []
    for root, directories, files in os.walk(directory):
        here = Path(root)
        links = [one for one in directories if (here / one).is_symlink()]
        for name in sorted([*files, *links]):
            if os.fsencode((here / name).relative_to(directory).as_posix()) not in names:
                found.append(here / name)
        empty = not directories and not files and here != directory
        if empty and os.fsencode(here.relative_to(directory).as_posix()) not in above:
            found.append(here)
    return found


def _outputs(path: Path) -> Iterator[Path]:
    """Every output at and below `path`: what has a manifest in it or beside it. Hidden directories are no outputs."""
    if path.is_file():
        if manifest_path(path).is_file():
            yield path
        return
    for root, directories, files in os.walk(path):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        for name in sorted(files):
            if name == MANIFEST:
                yield Path(root)
            elif name.endswith(f".{MANIFEST}") and not name.startswith("."):
                yield Path(root) / name.removesuffix(f".{MANIFEST}")


def _misfit(file: Path, size: int) -> str | None:
    if not file.is_file():
        return f"{file} is missing"
    if file.stat().st_size != size:
        return f"{file} has {file.stat().st_size:,} bytes instead of {size:,}"
    return None


def _read_all(files: list[Path], total: int) -> Iterator[str]:
    """The checksum of each of `files`, or why it cannot be read."""

    def read(file: Path) -> str:
        try:
            return checksum(file, from_disk=True)
        except (OSError, UserError) as error:
            return " ".join(str(error).split()).rstrip(".")

    if total < LARGE_BYTES:
        yield from map(read, files)
        return
    with ThreadPoolExecutor(READERS) as pool, progress("verify", total / 1e9, "GB") as advance:
        for file, made in zip(files, pool.map(read, files), strict=True):
            advance(file.stat().st_size / 1e9)
            yield made
