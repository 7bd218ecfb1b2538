"""The optimizer inside ColossalAI's: AdamW on float32 weights, in the form that every plugin takes."""

import shutil
from typing import Any

import torch
import torch.distributed as dist
from torch.optim.adamw import adamw

from llmforge.backends.common.processes import agree
from llmforge.console import say


class AdamW(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101) on float32 weights whose gradients may be of a lower dtype.

    `factor` multiplies the gradients first, in float32: the one clipping of every plugin, and the loss scale.
    Gemini calls `step` with `div_scale`, which its own clipping would use; it is -1, for none.
    """

    num_fp32_shards_per_param = (
        4  # what Gemini counts when it places the state: weight, gradient, two moments
    )

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.factor = 1.0

    @torch.no_grad()
    def step(self, closure: Any = None, div_scale: float = -1) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None and p.numel()]
            if not parameters:
                continue
            gradients = [p.grad.float() for p in parameters]
            if self.factor != 1:
                torch._foreach_mul_(gradients, self.factor)
            states = [self.moments(p, p) for p in parameters]
            adamw(
                *(parameters, gradients, [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]),
                *([], [s["step"] for s in states]),
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )

    def moments(self, key: torch.Tensor, weight: torch.Tensor) -> dict[str, Any]:
        """The state of `weight`, which is kept under `key`; made of zeros on first use."""
        if not self.state[key]:
            self.state[key] = {
                "step": torch.zeros((), dtype=torch.float32, device=weight.device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
        return dict(self.state[key])


def make_optimizer(groups: list[dict[str, Any]], betas: tuple[float, float], eps: float, group: Any) -> Any:
    """Collective: HybridAdam where its kernels build (a GPU, nvcc and CUDA_HOME) on all ranks of `group`, else `AdamW`.
    Gemini is told that both are among the optimizers that it takes.
    """
    from colossalai.zero.gemini import gemini_optimizer

    made: Any = None
    if torch.cuda.is_available():
        made, problem = _make_hybrid_adam(groups, betas, eps)
        if not agree(made is not None, group):
            made = None
            if dist.get_rank() == 0:
                why = problem or "not on every rank"
                say(f"HybridAdam's kernels cannot be built ({why}); using PyTorch's AdamW.")
    if made is None:
        made = AdamW(groups, betas, eps)
    gemini_optimizer._AVAIL_OPTIM_LIST.add(type(made))
    return made


def _make_hybrid_adam(
    groups: list[dict[str, Any]], betas: tuple[float, float], eps: float
) -> tuple[Any, str]:
    """HybridAdam; or None, and why."""
    from torch.utils.cpp_extension import CUDA_HOME

    from llmforge.backends.colossalai.hybrid_adam import ScaledHybridAdam

    missing = [
        name for name, there in (("CUDA_HOME", CUDA_HOME), ("nvcc", shutil.which("nvcc"))) if not there
    ]
    if missing:
        return None, f"{' and '.join(missing)} missing"
    try:
        return ScaledHybridAdam(groups, lr=0.0, betas=betas, eps=eps), ""
    except Exception as error:  # whatever the compiler of this machine says
        return None, " ".join(str(error).split())[:200]
