"""Rounded matrices as tensors of a weight file."""

from typing import TYPE_CHECKING, BinaryIO

from llmforge.weights.quantization.load import rounded_parts
from llmforge.weights.quantization.plan import Plan
from llmforge.weights.tensor import Tensor, write_all
from llmforge.weights.write import NewTensor

if TYPE_CHECKING:
    import torch


class Rounder:
    """Rounds matrices of `plan`, computed in `dtype`, when they are written, and keeps the last one.

    A weight file has its widest tensors first, so codes and scales are apart in it; a matrix is rounded once for each width
    instead of all of them being kept in memory.
    """

    def __init__(self, plan: Plan, dtype: str) -> None:
        self.plan, self.dtype = plan, dtype
        self.last: tuple[str, dict[str, torch.Tensor]] = ("", {})

    def tensors(self, tensor: Tensor) -> list[NewTensor]:
        """The tensors to be written in the place of `tensor`."""
        module = tensor.name.removesuffix(".weight")

        def writer(name: str) -> NewTensor:
            def write(file: BinaryIO) -> None:
                write_all(file, self._parts(tensor)[name].cpu().numpy())

            return NewTensor.made(name, *layout[name], write)

        layout = {f"{module}.{name}": part for name, part in self.plan.layout(tensor).items()}
        return [writer(name) for name in layout]

    def _parts(self, tensor: Tensor) -> "dict[str, torch.Tensor]":
        import torch

        if self.last[0] != tensor.name:
            self.last = ("", {})  # freed before the next one is made
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            self.last = (tensor.name, rounded_parts(tensor, self.plan, self.dtype, device))
        return self.last[1]
