"""The size of files that are read whole: above it a file is damaged or no such file, and reading it would fill the memory."""

from pathlib import Path

from llmforge.errors import UserError

LARGEST = 256 << 20  # bytes; the largest tokenizer.json of a published model has 35 MB


def refuse_large(path: Path) -> Path:
    """`path` again; `UserError` where it has more than `LARGEST` bytes."""
    if (size := path.stat().st_size) > LARGEST:
        raise UserError(
            f"{path} has {size:,} bytes, and at most {LARGEST:,} are allowed for such a file; download or write it again."
        )
    return path
