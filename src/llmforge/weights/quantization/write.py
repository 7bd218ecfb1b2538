"""A rounded matrix as tensors of a weight file."""

from typing import BinaryIO

from llmforge.weights.quantization.load import rounded_parts
from llmforge.weights.quantization.plan import Plan
from llmforge.weights.tensor import Tensor, write_all
from llmforge.weights.write import NewTensor


def rounded_tensors(tensor: Tensor, plan: Plan, dtype: str) -> list[NewTensor]:
    """The tensors to be written in the place of `tensor`, a matrix of `plan`, computed in `dtype`.

    A weight file has its widest tensors first, so codes and scales are apart in it; the matrix is rounded again for each
    instead of all of them being kept in memory.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = tensor.name.removesuffix(".weight")

    def writer(name: str) -> NewTensor:
        def write(file: BinaryIO) -> None:
            write_all(file, rounded_parts(tensor, plan, dtype, device)[name].cpu().numpy())

        return NewTensor.made(name, *layout[name], write)

    layout = {f"{module}.{name}": part for name, part in plan.layout(tensor).items()}
    return [writer(name) for name in layout]
