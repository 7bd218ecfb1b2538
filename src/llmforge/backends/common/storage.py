"""State on disk: every engine's weights as Hugging Face shards, and the native engines' optimizer state by
torch.distributed.checkpoint.
"""

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from llmforge.errors import UserError
from llmforge.weights import write as shards
from llmforge.weights.pickled import DTYPES
from llmforge.weights.tensor import write_all
from llmforge.weights.write import NewTensor

# One process is no accident here.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")
SHARD_BYTES = 5_000_000_000


def write_weights(
    tensors: Mapping[str, torch.Tensor],
    directory: Path,
    stem: str = "model",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """`tensors` as `STEM.safetensors`, or as numbered shards with their index where they are larger than one
    shard.
    """
    new = [
        NewTensor.made(
            name, DTYPES[str(tensor.dtype)], tuple(tensor.shape), partial(write_bytes, tensor=tensor)
        )
        for name, tensor in tensors.items()
    ]
    shards.write_weights(directory, shards.packed(new, shard_bytes), label=None, stem=stem)


def bytes_of(*groups: Mapping[str, torch.Tensor] | None) -> int:
    """Bytes of what lies on this rank of the tensors in `groups`."""
    tensors = [tensor for group in groups for tensor in (group or {}).values()]
    mine = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in mine)


def write_bytes(file: BinaryIO, tensor: torch.Tensor) -> int:
    """Writes what a tensor on the CPU holds, and returns how many bytes that is."""
    data = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    write_all(file, data)
    return int(data.size)


def read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of the safetensors files of `directory`, on the CPU."""
    from safetensors.torch import load_file

    return {
        name: tensor
        for file in sorted(directory.glob("*.safetensors"))
        for name, tensor in load_file(str(file)).items()
    }


def unique_state(model: Any) -> dict[str, torch.Tensor]:
    """The state dict of `model` with each tied tensor once, under its first name, as transformers saves
    it.
    """
    tied = {id(p): name for name, p in reversed(list(model.named_parameters(remove_duplicate=False)))}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    state = {}
    for name, tensor in model.state_dict().items():
        if name not in parameters or tied[id(parameters[name])] == name:
            state[name] = tensor
    return state


def named_as_in_files(model: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state` under the names, and cut as, the files of `model` have it.

    transformers 5 joins the experts of a layer into one tensor while it loads; files hold them one by one, for every
    other reader.
    """
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before version 5 memory and files agreed
        return state
    return dict(revert_weight_conversion(model, state))


def save_sharded(state: dict[str, torch.Tensor], directory: Path, process_group: Any = None) -> None:
    """Writes tensors or DTensors, each rank its own share. `OSError` where one of them cannot be written."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        save(
            state,
            checkpoint_id=str(directory),
            process_group=process_group,
            no_dist=not dist.is_initialized(),
        )
    except CheckpointException as error:
        raise OSError(_reason(error)) from error


def load_sharded(state: dict[str, torch.Tensor], directory: Path) -> None:
    """Fills the tensors of `state` in place, however many processes had written them."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        load(state, checkpoint_id=str(directory), no_dist=not dist.is_initialized())
    except CheckpointException as error:
        raise UserError(
            f"{directory} cannot be read ({_reason(error)[:200]}); resume from another checkpoint."
        ) from error


def _reason(error: Any) -> str:
    """Why the first rank of those that failed did; this exception is none of `Exception`'s."""
    return " ".join(str(next(iter(error.failures.values()))[0]).split())
