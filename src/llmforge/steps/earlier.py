"""Fingerprints as version 0.1 took them, which read a sample of weight files above 256 MB: what it finished can be
recognized only so.
"""

from pathlib import Path

import xxhash

from llmforge.errors import UserError
from llmforge.steps.checksums import READ_BYTES, checksum
from llmforge.steps.fingerprint import visible_files
from llmforge.steps.manifest import Manifest, manifest_path, read_manifest
from llmforge.steps.verify import changed_file

WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".gguf", ".pt"})
SAMPLED_ABOVE = 256 << 20
END_BYTES, BLOCK_BYTES, BLOCKS = 8 << 20, 64 << 10, 256


def is_earlier(manifest: Manifest) -> bool:
    """Whether version 0.1 wrote `manifest`: it recorded no checksums."""
    return "checksums" not in manifest.outputs


def earlier_fingerprint(path: Path) -> str | None:
    """What version 0.1 would take `path` for; None where it cannot be read."""
    try:
        if manifest_path(path).is_file():
            manifest = read_manifest(path)
            if is_earlier(manifest) and not changed_file(path, manifest, contents=False):
                return manifest.outputs.get("fingerprint")
        if path.is_file():
            return _of_file(path)
        digest = xxhash.xxh3_128()
        for name, file in visible_files(path):
            digest.update(name.encode() + b"\0" + bytes.fromhex(_of_file(file).removeprefix("xxh3:")))
    except (OSError, UserError, UnicodeEncodeError):
        return None
    return f"xxh3:{digest.hexdigest()}"


def _of_file(path: Path) -> str:
    """Of a large weight file its size, both ends and evenly spaced blocks count."""
    size = path.stat().st_size
    if path.suffix not in WEIGHT_SUFFIXES or size <= SAMPLED_ABOVE:
        return checksum(path)
    digest = xxhash.xxh3_128(size.to_bytes(8, "little"))
    spaced = (i * (size - BLOCK_BYTES) // (BLOCKS - 1) for i in range(BLOCKS))
    parts = [(0, END_BYTES), (size - END_BYTES, END_BYTES), *((start, BLOCK_BYTES) for start in spaced)]
    with path.open("rb", buffering=0) as file:
        for start, left in parts:
            file.seek(start)
            while left > 0 and (data := file.read(min(left, READ_BYTES))):
                digest.update(data)
                left -= len(data)
    return f"xxh3:{digest.hexdigest()}"
