"""ColossalAI's HybridAdam with the one factor that stands for every plugin's clipping and loss scale.

Imports ColossalAI's optimizers: `compat.install` comes first.
"""

from typing import Any

import torch
from colossalai.nn.optimizer import HybridAdam


class ScaledHybridAdam(HybridAdam):  # type: ignore[misc]
    """HybridAdam with `factor` and `moments`, as `optimizer.AdamW` has them."""

    factor = 1.0

    @torch.no_grad()
    def step(self, closure: Any = None, div_scale: float = -1) -> None:
        self._widen_gradients()
        super().step(div_scale=-1 if self.factor == 1 else 1 / self.factor)

    def _widen_gradients(self) -> None:
        """On the CPU HybridAdam 0.5.0 ignores `div_scale` for bf16 gradients, and would not clip."""
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.device.type == "cpu" and parameter.grad is not None:
                parameter.grad = parameter.grad.float()

    def moments(self, key: torch.Tensor, weight: torch.Tensor) -> dict[str, Any]:
        if not self.state[key]:
            zeros = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
            self.state[key] = {"step": 0, **zeros}
        return dict(self.state[key])
