"""`pytorch_model.bin` files: read as data alone (`weights_only`), mapped, one shard at a time."""

import pickle
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from llmforge.errors import UserError
from llmforge.weights.floats import Array
from llmforge.weights.tensor import Tensor

DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}


def read_pickled(path: Path) -> list[Tensor]:
    """The tensors of one pickled file; `UserError` if it is damaged or holds anything but tensors."""
    tensors = []
    for name, value in _load(path).items():
        dtype = DTYPES.get(str(getattr(value, "dtype", type(value).__name__)))
        if dtype is None:
            raise UserError(f"{path} holds {name}, which safetensors cannot store; convert the model first.")
        size = value.numel() * value.element_size()
        tensors.append(
            Tensor(name, dtype, tuple(value.shape), path, 0, size, load=partial(_bytes, path, name))
        )
    return tensors


def _bytes(path: Path, name: str) -> Array:
    import torch

    array: Array = _load(path)[name].contiguous().reshape(-1).view(torch.uint8).numpy()
    return array


@lru_cache(maxsize=1)
def _load(path: Path) -> dict[str, Any]:
    import torch

    try:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format of torch < 1.6 cannot be mapped
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} is damaged or contains more than weights ({str(error).splitlines()[0][:100]}); "
            "copy it again or convert it."
        ) from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} does not contain weights by name; convert the model to safetensors first.")
    return loaded
