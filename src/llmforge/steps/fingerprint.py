"""Fingerprints of files, directories and JSON values: what a thing holds, not where it lies or when it was made.

A fingerprint is `xxh3:` and 32 hexadecimal digits (XXH3-128, an integrity check and no defense against forgers).
Every byte counts; `checksums` remembers what it has read.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from llmforge.errors import UserError, missing
from llmforge.steps.checksums import checksum, checksums


def fingerprint(path: Path, *, verify: bool = True) -> str:
    """The fingerprint of a file (its checksum), or of all files below a directory.

    Hidden files, `llmforge.json` and anything inside hidden directories do not count. `UserError` where `path` is an
    output of llmforge that was changed after it had been finished; without `verify` an output is not read: its
    manifest is believed while the sizes of its files are as recorded.
    """
    from llmforge.steps.manifest import command_of, manifest_path, read_manifest
    from llmforge.steps.verify import changed_file

    if not path.exists():
        raise missing(path)
    if manifest_path(path).is_file():
        manifest = read_manifest(path)
        if changed := changed_file(path, manifest, contents=verify):
            command = command_of(manifest.step)
            raise UserError(
                f"{changed} was changed after {command} finished {path}; restore it, or run {command} with --overwrite."
            )
        if not verify and "fingerprint" in manifest.outputs:
            return str(manifest.outputs["fingerprint"])
    return fingerprint_contents(path)


def fingerprint_contents(path: Path) -> str:
    """Like `fingerprint`, but from the bytes alone. `path` is a file or a directory."""
    if path.is_file():
        return checksum(path)
    if not path.is_dir():
        raise UserError(f"{path} is neither a file nor a directory; give a path to one.")
    files = list(visible_files(path))
    made = checksums([file for _, file in files])
    return combined(zip((name for name, _ in files), made, strict=True))


def combined(entries: Iterable[tuple[str, str]]) -> str:
    """The fingerprint of a directory of files with these names and checksums, in name order."""
    digest = xxhash.xxh3_128()
    for name, made in entries:
        digest.update(os.fsencode(name) + b"\0")
        digest.update(bytes.fromhex(made.removeprefix("xxh3:")))
    return f"xxh3:{digest.hexdigest()}"


def fingerprint_json(value: Any) -> str:
    """The fingerprint of a JSON value; the order of keys does not count."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return f"xxh3:{xxhash.xxh3_128(canonical.encode('utf-8', 'surrogatepass')).hexdigest()}"


def visible_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """(relative POSIX name, path) of every file that counts, in name order."""
    for file in sorted(directory.rglob("*"), key=lambda p: p.relative_to(directory).as_posix()):
        name = file.relative_to(directory).as_posix()
        if is_visible(name) and file.is_file():
            yield name, file


def is_visible(name: str) -> bool:
    """Whether a file of this relative name counts: it is no manifest, not hidden and in no hidden directory."""
    from llmforge.steps.manifest import MANIFEST

    parts = name.split("/")
    return parts[-1] != MANIFEST and not any(part.startswith(".") for part in parts)
