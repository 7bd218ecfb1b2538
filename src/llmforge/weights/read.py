"""The tensors of a model directory, as places in files: nothing is read before it is asked for.

Safetensors shards are read by their headers and byte ranges, with neither torch nor a copy of the model in
memory.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmforge.errors import UserError
from llmforge.sizes import refuse_large
from llmforge.weights import header
from llmforge.weights.pickled import read_pickled
from llmforge.weights.tensor import Tensor

PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
MAX_INDEX_BYTES = 100 << 20
# How weights of other formats and other savings end; a directory that holds nothing else is told so.
OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".ckpt")


@dataclass(frozen=True)
class Weights:
    """The tensors of a model directory by name, and how they are divided into files, both in file order."""

    directory: Path
    tensors: Mapping[str, Tensor]
    shards: tuple[tuple[str, ...], ...]

    @property
    def size(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.size for tensor in self.tensors.values())


def open_weights(directory: Path, stem: str = "model") -> Weights:
    """The weights of a Hugging Face model directory; `UserError` if a file is missing or damaged.

    The files are those that transformers reads (4.51 and 5 alike): the whole safetensors file before its index, and
    both before pickled ones. Others, of an earlier save or another format, are skipped. `stem` begins the names of
    safetensors files.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; give a Hugging Face model directory.")
    for single, index, read in (
        (f"{stem}.safetensors", f"{stem}.safetensors.index.json", read_header),
        (PICKLED, PICKLED_INDEX, read_pickled),
    ):
        named: dict[str, str] = {}
        if (directory / single).is_file():
            files = [single]
        elif (directory / index).is_file():
            files, named = _read_index(directory / index)
        else:
            continue
        shards = [read(directory / file) for file in files]
        tensors = {tensor.name: tensor for shard in shards for tensor in shard}
        for name, file in named.items():
            if name not in tensors or tensors[name].path.name != file:
                raise UserError(
                    f"{directory / file} lacks the tensor {name} that {index} places in it; copy it again."
                )
        own = tuple(
            tuple(tensor.name for tensor in shard if tensors[tensor.name] is tensor) for shard in shards
        )
        return Weights(directory, tensors, own)
    others = sorted(file.name for file in directory.iterdir() if file.suffix in OTHER_WEIGHTS)
    raise UserError(
        f"{directory} contains no weights (neither {stem}.safetensors nor {PICKLED}, as one file or with an index)"
        + (f"; {others[0]} is not a name that transformers loads by default." if others else ".")
    )


def _read_index(path: Path) -> tuple[list[str], dict[str, str]]:
    """(file names, file name by tensor) of an index, all of which exist."""
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        named = json.loads(refuse_large(path).read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(named, dict) or not named:
            raise ValueError("its weight_map names no tensors")
        if wrong := [name for name, file in named.items() if not isinstance(file, str)]:
            raise ValueError(f"its weight_map gives no file for {wrong[0]!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not an index of weights ({error}); copy the model again.") from error
    files = sorted(set(named.values()))
    for file in files:
        if Path(file).name != file or "\\" in file:
            raise UserError(
                f"{path} names {file!r}, which is outside its directory; give a Hugging Face model directory."
            )
        if not (path.parent / file).is_file():
            raise UserError(f"{path} names {file}, which is missing; copy it into {path.parent}.")
    return files, named


def read_header(path: Path) -> list[Tensor]:
    """The tensors of one safetensors file, in file order; `UserError` if it is damaged or no such file."""
    return [
        Tensor(name, dtype, shape, path, start, size) for name, dtype, shape, start, size in header.read(path)
    ]
