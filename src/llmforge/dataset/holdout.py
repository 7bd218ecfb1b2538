"""The held-out documents as they were: OUT/holdout/<category>.jsonl, for `evaluate`; never trained on."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xxhash

from llmforge.corpus import Chunk, ReadOptions, Segment, read_blocks

LONGEST_NAME = 120


def write_holdout(
    directory: Path,
    chunks: Sequence[Chunk],
    reading: ReadOptions,
    lines: Mapping[int, npt.NDArray[np.uint32]],
) -> None:
    """Reads the chunks of `lines` again (chunk number to the lines of its held-out documents) and
    writes those.

    A line is a `record`.
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
                    fields = record(block.segments(i), category)
                    if block.conversations is not None and (messages := block.conversations[i].as_py()):
                        fields |= json.loads(messages)
                    files[category].write(json.dumps(fields, ensure_ascii=False) + "\n")
    finally:
        for file in files.values():
            file.close()


def record(segments: Sequence[Segment], category: str) -> dict[str, Any]:
    """{"source", "target", "category"}, `source` only where there is one. A document of other segments (a conversation)
    has its whole text as `target`, which is what `evaluate` measures, and {"text", "trained"} of each in `segments`. Beside
    that, a conversation has its `messages`.
    """
    if [segment.trained for segment in segments] in ([True], [False, True]):
        fields: dict[str, Any] = {"target" if one.trained else "source": one.text for one in segments}
    else:
        parts = [{"text": one.text, "trained": one.trained} for one in segments]
        fields = {"target": "".join(one.text for one in segments), "segments": parts}
    return {**fields, "category": category}


def file_name(category: str) -> str:
    """A category as a file name: `/` and the like written %2F, a very long one shortened to its hash."""
    name = re.sub(r"[/\0%]|^\.", lambda match: f"%{ord(match[0]):02X}", category)
    return (
        name
        if len(name.encode()) <= LONGEST_NAME
        else f"category-{xxhash.xxh3_64_hexdigest(category.encode())}"
    )
