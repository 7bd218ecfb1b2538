"""Weights of a model that ranks share: each reads, keeps and sends the rows that are its own, and none holds it whole."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist

from llmforge.backends.base import World
from llmforge.backends.common.processes import agree
from llmforge.backends.common.storage import SHARD_BYTES, named_as_in_files, unique_state, write_bytes
from llmforge.errors import UserError
from llmforge.weights.architecture import same_bytes
from llmforge.weights.floats import STORAGE
from llmforge.weights.pickled import DTYPES
from llmforge.weights.read import Weights, open_weights
from llmforge.weights.write import NewTensor, packed, write_weights

# The rows of a tensor that lie on this rank, as a view, and the number of the first.
Local = Callable[[torch.Tensor], tuple[torch.Tensor, int]]


def reads_as_it_is(causal: Any, weights: Weights) -> bool:
    """Whether the tensors of `weights` are those of `causal` by name, shape and meaning.

    They are not where transformers renames, cuts or joins what it reads (experts, since version 5), where the
    files are quantized, or where they hold tied tensors that differ.
    """
    if getattr(causal.config, "quantization_config", None):
        return False
    if any(
        _is_converted(name, conversion) for conversion in _conversions(causal) for name in weights.tensors
    ):
        return False
    found, wanted = weights.tensors, unique_state(causal)
    if not all(
        name in found and found[name].shape == tuple(tensor.shape) and found[name].dtype in STORAGE
        for name, tensor in wanted.items()
    ):
        return False
    parameters = dict(causal.named_parameters(remove_duplicate=False))
    first = {id(parameters[name]): name for name in wanted if name in parameters}
    return all(
        same_bytes(found[first[id(parameter)]], found[name])
        for name, parameter in parameters.items()
        if name not in wanted and name in found
    )


def _conversions(causal: Any) -> list[Any]:
    """What transformers does to names and tensors of this architecture while it loads them."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:  # before version 5, names alone were changed
        return list(getattr(causal, "_checkpoint_conversion_mapping", {}))
    return list(get_model_conversion_mapping(causal))


def _is_converted(name: str, conversion: Any) -> bool:
    return isinstance(conversion, str) or conversion.rename_source_key(name)[1] is not None


def read_shards(state: Mapping[str, torch.Tensor], weights: Weights, local: Local) -> None:
    """Fills this rank's rows of every tensor of `state` from the files, at most 16 MB at a time."""
    assert state.keys() <= weights.tensors.keys()
    with torch.no_grad():
        for name in (name for shard in weights.shards for name in shard if name in state):
            part, first = local(state[name])
            rows = part.view(len(part) if part.ndim else 1, -1)
            for row, values in weights.tensors[name].blocks(first + len(rows), first):
                rows[row - first : row - first + len(values)].copy_(torch.from_numpy(values))


def send_shards(
    state: Mapping[str, torch.Tensor], load: Callable[[], Any], world: World, local: Local
) -> None:
    """Collective: the same where files must go through transformers. Rank 0 calls `load` for the whole model, and
    sends one tensor after the other to all.
    """
    whole: dict[str, torch.Tensor] = {}
    problem: Exception | None = None
    if world.is_main:
        try:
            whole = unique_state(load())
            if whole.keys() != state.keys():
                raise UserError(
                    f"config.json ties {', '.join(sorted(whole.keys() ^ state.keys()))} to other weights, but the files "
                    "contain different values for it; set tie_word_embeddings to false in config.json."
                )
        except Exception as error:
            problem = error
    if not agree(problem is None, None):
        raise problem or UserError("rank 0 could not load the model; its message says why.")
    with torch.no_grad():
        for name, tensor in state.items():
            values = torch.empty(tensor.shape, dtype=tensor.dtype) if name not in whole else whole.pop(name)
            values = values.detach().contiguous()
            dist.broadcast(values, 0)
            part, first = local(tensor)
            part.copy_(values[first : first + len(part)] if part.ndim else values)


def write_shards(
    shares: Mapping[str, torch.Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    directory: Path,
    world: World,
    group: Any,
) -> None:
    """Collective: writes the tensors of which every rank has its own rows as safetensors files. Rank 0 writes them as
    they come, and holds one rank's rows of one tensor at a time.
    """
    # In the order in which a file holds them: what ranks send and what is written must meet.
    names = sorted(shares, key=lambda name: -shares[name].element_size())
    stream = _in_order([(shares[name], shapes[name]) for name in names], world, group)

    def tensor(name: str) -> NewTensor:
        def write(file: BinaryIO) -> None:
            while left[name]:
                left[name] -= write_bytes(file, next(stream))

        return NewTensor.made(name, DTYPES[str(shares[name].dtype)], shapes[name], write)

    left = {name: math.prod(shapes[name]) * shares[name].element_size() for name in names}
    try:
        if world.is_main:
            write_weights(directory, packed(map(tensor, names), SHARD_BYTES), label=None)
    finally:
        for _ in stream:  # where writing failed, the others send all the same
            pass


def rewrite_as_in_files(causal: Any, directory: Path) -> None:
    """Cuts tensors that transformers had joined (experts), in files that `write_shards` has written; one tensor at a
    time is in memory.
    """
    weights = open_weights(directory)
    planned: list[NewTensor] = []

    @lru_cache(maxsize=1)
    def cut(name: str) -> dict[str, torch.Tensor]:
        stored = weights.tensors[name].array()
        return named_as_in_files(causal, {name: torch.from_numpy(stored.copy())})

    def part(name: str, piece: str, meta: torch.Tensor) -> NewTensor:
        def write(file: BinaryIO) -> None:
            write_bytes(file, cut(name)[piece])

        return NewTensor.made(piece, weights.tensors[name].dtype, tuple(meta.shape), write)

    for name, tensor in weights.tensors.items():
        empty = torch.empty(tensor.shape, dtype=torch.float32, device="meta")
        pieces = named_as_in_files(causal, {name: empty})
        planned += (
            [NewTensor.copy(tensor)]
            if list(pieces) == [name]
            else [part(name, piece, meta) for piece, meta in pieces.items()]
        )
    if len(planned) == len(weights.tensors):
        return
    made = directory / ".as_in_files"
    made.mkdir()
    write_weights(made, packed(planned, SHARD_BYTES), label=None)
    for file in directory.glob("model*.safetensors*"):
        file.unlink()
    for file in made.iterdir():
        file.rename(directory / file.name)
    made.rmdir()


def first_row(rows: int, rank: int, size: int) -> int:
    """The first of the rows that `rank` holds of a tensor of `rows`: fully_shard cuts as torch.chunk does, in parts of
    equal size, the last ones shorter or empty.
    """
    return min(-(-rows // size) * rank, rows)


def _in_order(
    shares: Sequence[tuple[torch.Tensor, tuple[int, ...]]], world: World, group: Any
) -> Iterator[torch.Tensor]:
    """Collective: yields the rows of all ranks of one tensor after the other on rank 0; the others send theirs."""
    for mine, shape in shares:
        whole = tuple(mine.shape) == shape  # one row, which is rank 0's, or a buffer, which every rank has
        if world.is_main:
            yield mine
        elif not whole and len(mine):
            dist.send(mine, 0, group=group)
        if not world.is_main or whole:
            continue
        for rank in range(1, world.size):
            first, end = (first_row(shape[0], r, world.size) for r in (rank, rank + 1))
            if end > first:
                theirs = torch.empty(end - first, *shape[1:], dtype=mine.dtype)
                dist.recv(theirs, rank, group=group)
                yield theirs
