"""Which files an input holds, what category they are, and into which chunks their reading is divided.

The chunks are a pure function of the files, so every machine that sees the same input divides it alike.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from llmforge.console import warn
from llmforge.errors import UserError

KINDS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
# Small enough that work is shared evenly and little is lost to a kill, large enough that 10 TB make few
# files.
SMALLEST_CHUNK, LARGEST_CHUNK, WANTED_CHUNKS = 4 << 20, 1 << 30, 4096


@dataclass(frozen=True)
class Chunk:
    """A part of one file, read and encoded in one go.

    `start` and `stop` are bytes of a plain `.jsonl` (the chunk holds the lines that begin there) or row
    groups of a `.parquet`; a compressed file is one chunk. `name` is the file as reports call it, `size` its
    share of the bytes on disk, `category` the one of documents that name none.
    """

    number: int
    path: str
    name: str
    kind: str
    category: str
    start: int
    stop: int
    size: int


def find_chunks(inputs: Sequence[Path]) -> list[Chunk]:
    """All chunks of `inputs` (directories or files), in order; a `UserError` where there is nothing to
    read.
    """
    files = list(_find_files(inputs))
    if not files:
        raise UserError(
            f"{', '.join(map(str, inputs))}: no {', '.join(KINDS)} file in there; check --data-input-dirs."
        )
    total = sum(path.stat().st_size for path, _, _ in files)
    wanted = min(max(total // WANTED_CHUNKS, SMALLEST_CHUNK), LARGEST_CHUNK)
    chunks: list[Chunk] = []
    for path, name, category in files:
        kind = next(kind for kind in KINDS if path.name.endswith(kind))
        size = path.stat().st_size
        ranges = {".jsonl": _byte_ranges, ".parquet": _row_group_ranges}.get(kind, _whole)(path, size, wanted)
        for start, stop, share in ranges:
            chunks.append(Chunk(len(chunks), str(path), name, kind, category, start, stop, share))
    return chunks


def default_categories(inputs: Sequence[Path]) -> list[str]:
    """The category of documents directly in each input: the name of the directory."""
    return [(path.parent if path.is_file() else path).resolve().name for path in inputs]


def _find_files(inputs: Sequence[Path]) -> Iterator[tuple[Path, str, str]]:
    """(path, name, category) of every file once: a directory below an input gives its name to what lies in
    it.
    """
    seen: set[Path] = set()
    for root, own_category in zip(inputs, default_categories(inputs), strict=True):
        if not root.exists():
            raise UserError(f"{root} does not exist; check --data-input-dirs.")
        if root.is_file() and not root.name.endswith(KINDS):
            raise UserError(f"{root} is not a file that can be read here: {', '.join(KINDS)} can.")
        found = [root] if root.is_file() else _data_files(root)
        if not found:
            warn(f"{root} holds no {', '.join(KINDS)} file")
        for path in found:
            if (real := path.resolve()) in seen:
                warn(f"{path} is given more than once; it is read once")
                continue
            seen.add(real)
            inside = path.relative_to(root).parts if path != root else (path.name,)
            yield path, str(path), inside[0] if len(inside) > 1 else own_category


def _data_files(root: Path) -> list[Path]:
    def stop(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); nothing was prepared.")

    found: list[Path] = []
    for directory, below, names in os.walk(root, onerror=stop, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [Path(directory, n) for n in names if n.endswith(KINDS) and not n.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _byte_ranges(path: Path, size: int, wanted: int) -> list[tuple[int, int, int]]:
    count = max(1, round(size / wanted))
    cuts = [size * i // count for i in range(count + 1)]
    return [(a, b, b - a) for a, b in pairwise(cuts)]


def _row_group_ranges(path: Path, size: int, wanted: int) -> list[tuple[int, int, int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return [(0, 0, size)]  # whoever reads the chunk meets the same error, and counts it
    ranges, start, held = [], 0, 0
    for group in range(metadata.num_row_groups):
        held += metadata.row_group(group).total_byte_size
        if held >= wanted or group == metadata.num_row_groups - 1:
            ranges.append((start, group + 1, held))
            start, held = group + 1, 0
    on_disk = size / max(1, sum(share for _, _, share in ranges))
    return [(a, b, int(share * on_disk)) for a, b, share in ranges]


def _whole(path: Path, size: int, wanted: int) -> list[tuple[int, int, int]]:
    return [(0, 0, size)]
