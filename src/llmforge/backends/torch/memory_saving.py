"""Norms and gated MLPs that keep less for the backward pass: the same numbers from a third fewer activations.

What PyTorch keeps of a LLaMA layer as transformers writes it is dominated by intermediate results that are cheap to
make again: the normalized states in float32, their copies in the precision of each projection behind them, and the
activation of the gate. Here a norm keeps its input and one number per token and hands all projections the same
tensor in their precision; a gated MLP keeps gate and up and makes the activation again (as Liger Kernel does on GPUs,
arXiv 2410.10989).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

# Layers in which what leaves these norms goes to projections alone, so it may have their precision.
FAMILIES = {"llama", "mistral", "mixtral", "qwen2", "qwen3", "phi3", "smollm3"}
NORMS = {"input_layernorm", "post_attention_layernorm"}


def keep_less(causal: Any) -> int:
    """Replaces `forward` of the norms and MLPs of `causal` that are known; returns how many.

    By a class, not in each module: torch.compile tells functions of modules apart, and would compile every layer for itself
    and those beyond its limit (8) not at all.
    """
    if causal.config.model_type not in FAMILIES:
        return 0
    replaced = 0
    for name, module in causal.named_modules():
        if name.rpartition(".")[2] in NORMS and hasattr(module, "variance_epsilon"):
            module.__class__ = _with_forward(type(module), rms_norm)  # type: ignore[arg-type]
        elif isinstance(getattr(module, "act_fn", None), torch.nn.Module) and _is_gated(module):
            module.__class__ = _with_forward(type(module), gated_mlp)  # type: ignore[arg-type]
        else:
            continue
        replaced += 1
    return replaced


@cache
def _with_forward(kind: type[torch.nn.Module], forward: Callable[..., torch.Tensor]) -> type[torch.nn.Module]:
    """`kind` with another `forward`; the same class each time."""
    return type(kind.__name__, (kind,), {"forward": forward})


def _is_gated(module: Any) -> bool:
    projections = all(hasattr(module, f"{name}_proj") for name in ("gate", "up", "down"))
    return projections and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")


def rms_norm(module: Any, states: torch.Tensor) -> torch.Tensor:
    """`states` (..., d), divided by their root mean square (arXiv 1910.07467), in the dtype of what comes
    behind.
    """
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    normed: torch.Tensor = _RMSNorm.apply(states, module.weight, module.variance_epsilon, dtype)  # type: ignore[no-untyped-call]
    return normed


def gated_mlp(module: Any, states: torch.Tensor) -> torch.Tensor:
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""
    inner = _GatedSiLU.apply(module.gate_proj(states), module.up_proj(states))  # type: ignore[no-untyped-call]
    result: torch.Tensor = module.down_proj(inner)
    return result


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, epsilon: float, dtype: torch.dtype
    ) -> torch.Tensor:
        wide = states.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(states, weight, scale)
        return (weight * (wide * scale).to(states.dtype)).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight, scale = ctx.saved_tensors
        normed, gradient = states.float() * scale, gradient.float()
        for_weight = None
        if ctx.needs_input_grad[1]:
            for_weight = (gradient * normed).flatten(0, -2).sum(0).to(weight.dtype)
        gradient = gradient * weight
        along = (gradient * normed).mean(-1, keepdim=True)
        return (scale * (gradient - normed * along)).to(states.dtype), for_weight, None, None


class _GatedSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return torch.nn.functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        for_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return for_gate, gradient * torch.nn.functional.silu(gate)
