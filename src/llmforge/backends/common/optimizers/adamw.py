"""AdamW (arXiv 1711.05101), fused."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmforge.backends.common.optimizers.base import Optimizer

if TYPE_CHECKING:
    import torch

    from llmforge.backends.common.settings import Settings


class AdamW(Optimizer):
    def make(
        self, causal: Any, parameters: "Mapping[str, torch.nn.Parameter]", settings: "Settings"
    ) -> "list[torch.optim.Optimizer]":
        import torch

        from llmforge.backends.common.step import optimizer_groups

        groups = optimizer_groups(causal, parameters.values(), settings)
        made = torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.epsilon, fused=True)
        for parameter in parameters.values():
            made.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return [made]


OPTIMIZER = AdamW()
