"""Fingerprints of files, directories and JSON values: what a thing holds, not where it lies or when it was made.

A fingerprint is `xxh3:` and 32 hexadecimal digits (XXH3-128, an integrity check and no defence against forgers).
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import xxhash

from llmforge.errors import UserError

# Hashing 140 GB of weights would cost as much as copying them, so of a large weight file only its size, both ends
# and evenly spaced blocks are read: training or growing a model changes every block. Text is always read whole.
WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".gguf", ".pt"})
SAMPLED_ABOVE_BYTES = 256 << 20
END_BYTES = 8 << 20
BLOCK_BYTES = 64 << 10
BLOCKS = 256
READ_BYTES = 1 << 20


def fingerprint(path: Path) -> str:
    """The fingerprint of a file, or of all files below a directory.

    Hidden files, `llmforge.json` and anything inside hidden directories do not count. A directory that llmforge
    finished is not read again: its manifest holds the fingerprint that was taken when it was written, and is
    trusted while the names and sizes of its files are the ones recorded.
    """
    from llmforge.workspace.manifest import manifest_path, recorded_fingerprint

    if not path.exists():
        raise UserError(f"{path} does not exist; check the path.")
    if manifest_path(path).is_file() and (recorded := recorded_fingerprint(path)):
        return recorded
    return fingerprint_contents(path)


def fingerprint_contents(path: Path, known: Mapping[str, str] = MappingProxyType({})) -> str:
    """Like `fingerprint`, but from the bytes on disk. `path` is a file or a directory; `known` are fingerprints of
    files in it, by their relative POSIX name, that were taken already.
    """
    digest = xxhash.xxh3_128()
    if path.is_file():
        _update_with_file(digest, path)
    else:
        for name, file in visible_files(path):
            digest.update(name.encode() + b"\0")
            inner = known.get(name) or fingerprint_contents(file)
            digest.update(bytes.fromhex(inner.removeprefix("xxh3:")))
    return f"xxh3:{digest.hexdigest()}"


def fingerprint_json(value: Any) -> str:
    """The fingerprint of a JSON value; the order of keys does not count."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return f"xxh3:{xxhash.xxh3_128(canonical.encode('utf-8', 'surrogatepass')).hexdigest()}"


def visible_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """(relative POSIX name, path) of every file that counts, in name order."""
    from llmforge.workspace.manifest import MANIFEST

    for file in sorted(directory.rglob("*"), key=lambda p: p.relative_to(directory).as_posix()):
        relative = file.relative_to(directory)
        if (
            file.is_file()
            and relative.name != MANIFEST
            and not any(p.startswith(".") for p in relative.parts)
        ):
            yield relative.as_posix(), file


def _update_with_file(digest: "xxhash.xxh3_128", path: Path) -> None:
    """Through a small buffer: pages of a mapped file would count as this process's memory."""
    size = path.stat().st_size
    parts = [(0, size)]
    if path.suffix in WEIGHT_SUFFIXES and size > SAMPLED_ABOVE_BYTES:
        digest.update(size.to_bytes(8, "little"))
        spaced = (i * (size - BLOCK_BYTES) // (BLOCKS - 1) for i in range(BLOCKS))
        parts = [(0, END_BYTES), (size - END_BYTES, END_BYTES), *((start, BLOCK_BYTES) for start in spaced)]
    buffer = memoryview(bytearray(min(size, READ_BYTES)))
    with path.open("rb", buffering=0) as file:
        for start, left in parts:
            file.seek(start)
            while left > 0 and (count := file.readinto(buffer[:left])):
                digest.update(buffer[:count])
                left -= count
