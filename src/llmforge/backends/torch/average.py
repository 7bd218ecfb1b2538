"""An exponential moving average of the trained weights (arXiv 1803.05407 averages along a training; 2306.03241)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch


class Average:
    """a <- decay a + (1 - decay) w after each step that changed the weights w; a begins as w.

    `values` has it by the names of the parameters: float32, where they lie and cut as they are. `local` gives the rows of
    a tensor that lie on this rank.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        decay: float,
        local: Callable[[torch.Tensor], tuple[torch.Tensor, int]],
    ) -> None:
        self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self.parameters, self.decay, self.local = parameters, decay, local

    @torch.no_grad()
    def update(self) -> None:
        ours, theirs = (
            [self.local(tensor.detach())[0] for tensor in group.values()]
            for group in (self.values, self.parameters)
        )
        torch._foreach_lerp_(ours, theirs, 1 - self.decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """While it is open, the average lies in the parameters and the weights lie in `values`. Afterwards every bit is
        where it was. Takes the memory of one tensor.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self.values.items():
            ours, theirs = self.local(average)[0], self.local(self.parameters[name].detach())[0]
            kept = ours.clone()
            ours.copy_(theirs)
            theirs.copy_(kept)
