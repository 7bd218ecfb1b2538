"""A rounded matrix as tensors of a weight file."""

from typing import BinaryIO

from llmforge.weights.quantization.load import rounded
from llmforge.weights.quantization.plan import Plan
from llmforge.weights.tensor import Tensor, write_all
from llmforge.weights.write import NewTensor

STORED = {"torch.uint8": "U8", "torch.int8": "I8", "torch.float32": "F32"}


def rounded_tensors(tensor: Tensor, plan: Plan, dtype: str) -> list[NewTensor]:
    """The tensors to be written in the place of `tensor`, a matrix of `plan`, computed in `dtype`.

    A weight file has its widest tensors first, so codes and scales are apart in it; the matrix is rounded again for each
    instead of all of them being kept in memory.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def writer(name: str) -> NewTensor:
        def write(file: BinaryIO) -> None:
            write_all(file, rounded(tensor, plan, dtype, device)[name].cpu().numpy())

        part = shapes[name]
        return NewTensor(
            name, STORED[str(part.dtype)], tuple(part.shape), part.numel() * part.itemsize, write
        )

    shapes = rounded(tensor, plan, dtype, torch.device("meta"))
    return [writer(name) for name in shapes]
