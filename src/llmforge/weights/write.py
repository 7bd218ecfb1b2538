"""Writing safetensors shards and their index, one tensor after the other."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llmforge.console import progress
from llmforge.errors import DISK_FULL, UserError
from llmforge.steps import free_bytes
from llmforge.weights.floats import BYTES
from llmforge.weights.tensor import Tensor, write_all


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written: `write` puts exactly `size` bytes at the position of an unbuffered file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    write: Callable[[BinaryIO], object]

    @staticmethod
    def copy(tensor: Tensor) -> "NewTensor":
        """`tensor`, byte for byte; writing it raises `UserError` where it holds NaN or infinity, which is looked for then
        so that the file is read from disk but once.
        """

        def write(file: BinaryIO) -> None:
            tensor.check_finite()
            tensor.copy_to(file)

        return NewTensor(tensor.name, tensor.dtype, tensor.shape, tensor.size, write)

    @staticmethod
    def made(
        name: str, dtype: str, shape: tuple[int, ...], write: Callable[[BinaryIO], object]
    ) -> "NewTensor":
        return NewTensor(name, dtype, shape, math.prod(shape) * BYTES[dtype], write)


def packed(tensors: Iterable[NewTensor], max_size: int) -> list[list[NewTensor]]:
    """Divides `tensors`, in their order, into shards of at most `max_size` bytes; a larger tensor gets its own."""
    shards: list[list[NewTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.size > max_size:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size
    return shards


def write_weights(
    directory: Path, shards: Sequence[Sequence[NewTensor]], label: str | None, stem: str = "model"
) -> None:
    """Writes `shards` to `directory` as safetensors files, with an index if there are several.

    `label` names the work for the progress bar (None: there is none), `stem` begins the files' names.
    """
    shards = [shard for shard in shards if shard]
    total = sum(tensor.size for shard in shards for tensor in shard)
    placed: dict[str, str] = {}
    bar = progress(label, total / 1e6, "MB") if label else nullcontext(lambda *_: None)
    with bar as advance:
        for number, shard in enumerate(shards, start=1):
            several = len(shards) > 1
            name = (
                f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" if several else f"{stem}.safetensors"
            )
            _write_file(directory / name, shard, advance)
            placed.update({tensor.name: name for tensor in shard})
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        (directory / f"{stem}.safetensors.index.json").write_text(
            json.dumps(index, indent=2) + "\n", encoding="utf-8"
        )


def _write_file(path: Path, shard: Sequence[NewTensor], advance: Callable[..., None]) -> None:
    # Widest elements first, as safetensors itself does, so that every tensor is aligned when the file is
    # mapped.
    shard = sorted(shard, key=lambda tensor: -BYTES.get(tensor.dtype, 1))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in shard:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.size],
        }
        end += tensor.size
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb", buffering=0) as file:
        write_all(file, np.frombuffer(len(encoded).to_bytes(8, "little") + encoded, np.uint8))
        for tensor in shard:
            start = file.tell()
            tensor.write(file)
            assert file.tell() - start == tensor.size, (
                f"{tensor.name}: {file.tell() - start} bytes, not {tensor.size}"
            )
            advance(tensor.size / 1e6)


@contextmanager
def enough_disk_space(output: Path, size: int) -> Iterator[None]:
    """Refuses `output`, which needs `size` bytes, where there is less free space, and turns a disk that fills up meanwhile
    into the same sentence.
    """

    def too_little(why: str) -> UserError:
        return UserError(
            f"not enough disk space for {output}: it needs {size / 1e9:.3f} GB and {free_bytes(output.parent) / 1e9:.3f} GB are free "
            f"({why}); free some, or choose another output."
        )

    if free_bytes(output.parent) < size:
        raise too_little("nothing was written")
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise too_little((error.strerror or "").lower()) from error
