"""What a way to merge models is to everything else."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llmforge.errors import UsageError

if TYPE_CHECKING:
    from llmforge.weights.floats import Float32
    from llmforge.weights.tensor import Tensor


@dataclass(frozen=True)
class Rows:
    """The rows of `tensor` from `begin` to `end`, of one of the models that are merged."""

    tensor: "Tensor"
    begin: int
    end: int

    def blocks(self) -> "Iterator[Float32]":
        """Them in order, at most 16 MB at a time; of tensors of one shape the blocks are equally long."""
        return (block for _, block in self.tensor.blocks(self.end, self.begin))


class Method(ABC):
    """A file of this package sets `METHOD` to an object of a subclass: every merged tensor is a sum of those of the models,
    each times a factor. `text` is its line of help; `needs_base`: it starts from the model of `--base`.
    """

    text: ClassVar[str]
    needs_base: ClassVar[bool] = False

    @abstractmethod
    def default(self, models: int) -> list[float]:
        """The weight of each of `models` models where `--weights` are not given."""

    def check(self, weights: Sequence[float]) -> None:
        """Raises `UsageError` for weights that it cannot take, one for each model."""
        if len(weights) < 2:
            raise UsageError("--models: give at least two models to merge.")
        if min(weights) < 0 or sum(weights) <= 0:
            raise UsageError("--weights: must not be negative, and not all 0.")

    @abstractmethod
    def factors(self, rows: Sequence[Rows], weights: Sequence[float]) -> list[float]:
        """The factor of each of `rows`, which are those of one tensor of all models, the base first where it needs one."""
