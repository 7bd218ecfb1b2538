"""AdamW (arXiv 1711.05101), fused."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmforge.backends.common.optimizers.base import Optimizer

if TYPE_CHECKING:
    import torch

    from llmforge.backends.common.settings import Settings


class AdamW(Optimizer):
    by_group = True

    def make(
        self, causal: Any, parameters: "Mapping[str, torch.nn.Parameter]", settings: "Settings"
    ) -> "list[torch.optim.Optimizer]":
        import torch

        from llmforge.backends.common.rates import row_parts
        from llmforge.backends.common.step import optimizer_groups

        parts = row_parts(causal, parameters, settings)
        groups = optimizer_groups(causal, (p for p in parameters.values() if p not in parts), settings)
        decay = settings.weight_decay if settings.decay_embeddings else 0.0
        groups += [group for part in parts.values() for group in part.groups(decay)]
        made = torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.epsilon, fused=True)
        for parameter in parameters.values():
            made.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        for part in parts.values():
            part.join(made)
        return [made]


OPTIMIZER = AdamW()
