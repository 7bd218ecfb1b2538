"""A tensor as a place in a file: read, measured and copied without loading what lies around it."""

import errno
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llmforge.errors import UserError
from llmforge.weights.floats import STORAGE, Array, Float32, all_finite, storage_dtype, to_float32

# Why copy_file_range may be impossible where read and write are not: other file system, old kernel, odd
# mount.
NOT_IN_KERNEL = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF}
COPY_BYTES = 16 << 20
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class Tensor:
    """A tensor that lies in a file.

    `dtype` is a safetensors name such as "BF16". Its `size` bytes begin at `offset` of `path`; with `load`
    they are got by calling it instead (a pickled file), as an array of uint8.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    size: int
    load: Callable[[], Array] | None = None

    @property
    def rows(self) -> int:
        """The length of the first dimension (1 for a scalar)."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return self.size // self.rows if self.rows else 0

    def array(self) -> Array:
        """All of it, read-only and mapped: shape `shape`, in `storage_dtype(dtype)`."""
        kind = storage_dtype(self.dtype)
        if self.size == 0:
            return np.empty(self.shape, kind)
        if self.load is not None:
            return self.load().view(kind).reshape(self.shape)
        return np.memmap(self.path, kind, mode="r", offset=self.offset, shape=self.shape)

    def read(self, start: int, stop: int) -> Array:
        """The bytes from `start` to `stop` of the tensor, uint8."""
        if self.load is not None:
            return self.load()[start:stop]
        return np.fromfile(self.path, np.uint8, stop - start, offset=self.offset + start)

    def blocks(self, stop: int | None = None, start: int = 0) -> Iterator[tuple[int, Float32]]:
        """(first row, rows as float32 [at most 16 MB, row length]) from row `start` up to row `stop`."""
        kind, stop = storage_dtype(self.dtype), self.rows if stop is None else stop
        step = max(1, BLOCK_BYTES // max(4 * math.prod(self.shape[1:]), 1))
        for first in range(start, stop, step):
            count = min(step, stop - first)
            stored = self.read(first * self.row_bytes, (first + count) * self.row_bytes).view(kind)
            yield first, to_float32(stored.reshape(count, -1), self.dtype)

    def check_finite(self, stop: int | None = None) -> None:
        """Raises `UserError` if one of the rows up to row `stop` (all by default) holds NaN or infinity."""
        stop = self.rows if stop is None else stop
        if self.dtype not in STORAGE or not self.row_bytes:
            return
        kind, bad = storage_dtype(self.dtype), []
        step = max(1, BLOCK_BYTES // self.row_bytes)
        for first in range(0, stop, step):
            last = min(first + step, stop)
            stored = self.read(first * self.row_bytes, last * self.row_bytes).view(kind)
            if not all_finite(stored, self.dtype):
                block = to_float32(stored.reshape(last - first, -1), self.dtype)
                bad += [first + int(row) for row in np.flatnonzero(~np.isfinite(block).all(axis=1))]
        if bad:
            shown = ", ".join(map(str, bad[:3])) + (" ..." if len(bad) > 3 else "")
            raise UserError(
                f"{self.path}: {self.name} contains NaN or infinity in {len(bad):,} of {stop:,} rows ({shown}); "
                "the model is damaged or its training diverged; use another copy or checkpoint."
            )

    def copy_to(self, file: BinaryIO, stop: int | None = None) -> None:
        """Writes the bytes of the rows up to row `stop` (all by default) at the position of `file`."""
        count = self.size if stop is None else stop * self.row_bytes
        if self.load is not None:
            write_all(file, self.load()[:count])
        elif count:
            copy_range(self.path, self.offset, count, file)


def write_all(file: BinaryIO, data: Array) -> None:
    """Writes the bytes of `data` to an unbuffered file, which may take them in several parts."""
    view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
    while len(view):
        view = view[file.write(view) :]


def copy_range(path: Path, offset: int, count: int, file: BinaryIO) -> None:
    """Copies `count` bytes from `offset` of `path` to the position of the unbuffered `file`, inside the
    kernel if it can.
    """
    with path.open("rb", buffering=0) as source:
        if hasattr(os, "copy_file_range"):
            while count:
                try:
                    copied = os.copy_file_range(source.fileno(), file.fileno(), count, offset)
                except OSError as error:
                    if error.errno in NOT_IN_KERNEL:
                        break
                    raise
                if not copied:
                    break
                offset, count = offset + copied, count - copied
        source.seek(offset)
        buffer = memoryview(bytearray(min(count, COPY_BYTES)))
        while count:
            read = source.readinto(buffer[: min(count, COPY_BYTES)])
            if not read:
                raise UserError(f"{path} was truncated while it was read; copy it again.")
            write_all(file, np.frombuffer(buffer[:read], np.uint8))
            count -= read
