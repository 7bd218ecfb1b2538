"""What an optimizer is to everything else."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch

    from llmforge.backends.common.settings import Settings


class Optimizer(ABC):
    """A file of this package sets `OPTIMIZER` to an object of a subclass. `by_group`: it steps the groups of
    `Settings.rates` with their own factors.
    """

    by_group: ClassVar[bool] = False

    def check(self, options: Any) -> None:  # noqa: B027 - some take everything
        """Raises `UsageError` for options of `train` that contradict this optimizer."""

    def check_backend(self, plugin: str) -> None:  # noqa: B027
        """Raises `UsageError` where the backend `plugin`, which `auto` was resolved to, cannot run it."""

    def state_bytes(self, embeddings: int, layers: int) -> int:
        """Bytes of its state for so many trained parameters, for estimates of memory."""
        return 8 * (embeddings + layers)

    @abstractmethod
    def make(
        self, causal: Any, parameters: "Mapping[str, torch.nn.Parameter]", settings: "Settings"
    ) -> "list[torch.optim.Optimizer]":
        """Optimizers that share the trained `parameters` of `causal` (whole, or cut along their first dimension).

        The engine sets `lr` in every group, times the group's `factor` where it has one. The state of every parameter is there from the start, as tensors: it is
        saved, and filled when a run is resumed.
        """
