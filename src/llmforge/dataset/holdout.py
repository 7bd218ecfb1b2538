"""The held-out documents as they were: OUT/holdout/<category>.jsonl, for `evaluate`; never trained on."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import xxhash

from llmforge.corpus import Chunk, ReadOptions, read_blocks

LONGEST_NAME = 120


def write_holdout(
    directory: Path,
    chunks: Sequence[Chunk],
    reading: ReadOptions,
    lines: Mapping[int, npt.NDArray[np.uint32]],
) -> None:
    """Reads the chunks of `lines` again (chunk number to the lines of its held-out documents) and
    writes those.

    A line is {"source", "target", "category"}; `source` only where the document has one.
    """
    directory.mkdir(exist_ok=True)
    for stale in directory.iterdir():
        stale.unlink()
    files: dict[str, IO[str]] = {}
    try:
        for number in sorted(lines):
            for block in read_blocks(chunks[number], reading):
                for i in np.flatnonzero(np.isin(block.line, lines[number])).tolist():
                    category = block.category[i].as_py()
                    if category not in files:
                        files[category] = (directory / f"{file_name(category)}.jsonl").open(
                            "w", encoding="utf-8"
                        )
                    document = block.document(i, chunks[number].name)
                    assert len(document.segments) <= 2, "a record has one source and one target"
                    record = {"target" if s.trained else "source": s.text for s in document.segments}
                    record["category"] = category
                    files[category].write(json.dumps(record, ensure_ascii=False) + "\n")
    finally:
        for file in files.values():
            file.close()


def file_name(category: str) -> str:
    """A category as a file name: `/` and the like written %2F, a very long one shortened to its hash."""
    name = re.sub(r"[/\0%]|^\.", lambda match: f"%{ord(match[0]):02X}", category)
    return (
        name
        if len(name.encode()) <= LONGEST_NAME
        else f"category-{xxhash.xxh3_64_hexdigest(category.encode())}"
    )
