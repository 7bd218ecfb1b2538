"""A stand-in for apex's `fused_rms_norm_affine`, whose kernel needs a GPU: the same call and mathematics by PyTorch.

As apex's, it is an autograd function of its own whose inside PyTorch's hooks of functions do not see, computes in
float32, rounds once, and lowers what it is given where autocast is on.
"""

from functools import wraps
from typing import Any

import torch

calls = 0


def unseen(function: Any) -> Any:
    """`function` as if it were not in Python."""

    @wraps(function)
    def run(*words: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return function(*words)

    return run


class FusedRMSNorm(torch.autograd.Function):
    @staticmethod
    @unseen
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, shape: Any, epsilon: float) -> Any:
        assert hidden.dtype == weight.dtype
        assert tuple(shape) == weight.shape == hidden.shape[-1:]
        inverse = torch.rsqrt(hidden.float().square().mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(hidden, weight, inverse)
        return (hidden.float() * inverse * weight.float()).to(hidden.dtype)

    @staticmethod
    @unseen
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        hidden, weight, inverse = ctx.saved_tensors
        gradient, normal = gradients[0].float(), hidden.float() * inverse
        of_weight = (gradient * normal).flatten(0, -2).sum(0)
        gradient = gradient * weight.float()
        of_hidden = inverse * (gradient - normal * (gradient * normal).mean(-1, keepdim=True))
        return of_hidden.to(hidden.dtype), of_weight.to(weight.dtype), None, None


def fused_rms_norm_affine(
    input: torch.Tensor, weight: torch.Tensor, normalized_shape: Any, eps: float = 1e-6
) -> torch.Tensor:
    global calls
    calls += 1
    if torch.is_autocast_enabled(input.device.type):
        lowered = torch.get_autocast_dtype(input.device.type)
        input, weight = input.to(lowered), weight.to(lowered)
    output: torch.Tensor = FusedRMSNorm.apply(input, weight, normalized_shape, eps)
    return output
