"""Trained weights are pulled towards those that the training started from, as weight decay pulls them towards zero
(L2-SP, arXiv 1802.01483, decoupled as in arXiv 1711.05101).
"""

from collections.abc import Callable, Mapping

import torch


class Anchor:
    """w <- w - rate x strength x (w - start) with each update, before the optimizer's step, where `rate` is the learning
    rate of the weight's group.

    Of embeddings the rows from `old_rows` on, which the source does not know, are left alone. `start` has the weights by
    the names of the parameters, float32, where they lie and cut as they are.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        strength: float,
        factors: Mapping[int, float],
        embeddings: set[int],
        old_rows: int,
        local: Callable[[torch.Tensor], tuple[torch.Tensor, int]],
    ) -> None:
        self.start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self.strength = strength
        groups: dict[float, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for name, parameter in parameters.items():
            weights, first = local(parameter.detach())
            start, _ = local(self.start[name])
            if id(parameter) in embeddings:
                end = max(0, old_rows - first)
                weights, start = weights[:end], start[:end]
            if weights.numel():
                pair = groups.setdefault(factors.get(id(parameter), 1.0), ([], []))
                pair[0].append(weights)
                pair[1].append(start)
        self.groups = groups

    @torch.no_grad()
    def pull(self, learning_rate: float) -> None:
        for factor, (weights, start) in self.groups.items():
            torch._foreach_lerp_(weights, start, learning_rate * factor * self.strength)
