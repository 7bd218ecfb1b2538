"""Parts of files, as they are read one by one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """A part of one file, read and encoded in one go.

    `kind` is the suffix by which its format is registered, `compression` "", ".gz" or ".zst". `start` and `stop` are
    bytes of a plain file of lines (the chunk holds the lines that begin there) or row groups of a `.parquet`; others
    are one chunk. `name` is the file as reports call it, `size` its share of the bytes on disk, `category` the
    one of documents that name none.
    """

    number: int
    path: str
    name: str
    kind: str
    compression: str
    category: str
    start: int
    stop: int
    size: int
