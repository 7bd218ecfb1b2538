"""Files that are not read: whole ones of a size that would fill the memory, and pipes, sockets and devices, which would wait
for ever.
"""

import stat
from pathlib import Path

from llmforge.errors import UserError

LARGEST = 256 << 20  # bytes; the largest tokenizer.json of a published model has 35 MB


def refuse_large(path: Path) -> Path:
    """`path` again; `UserError` where it has more than `LARGEST` bytes, or is special."""
    refuse_special(path)
    if (size := path.stat().st_size) > LARGEST:
        raise UserError(
            f"{path} has {size:,} bytes, and at most {LARGEST:,} are allowed for such a file; download or write it again."
        )
    return path


def refuse_special(path: Path) -> Path:
    """`path` again; `UserError` where it is neither a file nor a directory."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path} is not a regular file; write its contents to a file and give that file.")
    return path
