"""RMS norms by the fused kernel of NVIDIA's apex, where it is there and computes what the model's own norms compute.

ColossalAI 0.5.0 has a switch for them, in 3d alone, which dies where apex is missing; and PyPI's `apex` is another
package. Here the forward of a model's norms is replaced, for every plugin. Modules, parameters and their names
stay, and with them sharding, freezing and checkpoints.
"""

import inspect
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from importlib import import_module
from types import MethodType
from typing import Any

import torch
from torch.overrides import handle_torch_function, has_torch_function

from llmforge.backends.common.processes import agree
from llmforge.console import say

DEVICE = "cuda"  # the type of device that apex's kernel is for
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Size, float], torch.Tensor]


def fuse_norms(model: torch.nn.Module, device: torch.device, group: Any, tell: bool) -> bool:
    """Collective: lets the RMS norms of `model` compute by apex's kernel, on all ranks of `group` or on none; returns
    which. `tell`: whether this rank says why not.
    """
    norms = rms_norms(model)
    problem = find_problem(norms, device)
    fused = agree(problem is None, group) and bool(norms)
    if fused:
        for norm in norms:
            norm.forward = MethodType(fused_forward, norm)
    elif norms and tell:
        say(
            f"apex's fused norms are not available ({problem or 'not on every rank'}); using the model's own norms."
        )
    return fused


def rms_norms(model: torch.nn.Module) -> list[Any]:
    """The modules of `model` that look like LLaMA's norm: a weight, an epsilon, one input."""
    return [
        module
        for module in model.modules()
        if hasattr(module, "variance_epsilon")
        and [name for name, _ in module.named_parameters()] == ["weight"]
        and len(inspect.signature(module.forward).parameters) == 1
    ]


def find_problem(norms: Sequence[Any], device: torch.device) -> str | None:
    """Why apex's kernel cannot take the place of `norms` on `device`; None where it can. It is tried once for each
    kind of them.
    """
    if device.type != DEVICE:
        return "they need a GPU"
    kernel, problem = load_kernel()
    if kernel is None:
        return problem
    kinds = {(type(n), n.weight.shape, n.weight.dtype, n.variance_epsilon): n for n in norms}
    try:
        for norm in kinds.values():
            if not agrees(norm, device):
                return f"it computes other numbers than {type(norm).__name__}"
    except Exception as error:  # whatever the kernel says on this machine
        return in_short(error)
    return None


@cache
def load_kernel() -> tuple[Kernel | None, str]:
    """apex's kernel; or None, and why. Its CUDA half is loaded with the first call of it."""
    try:
        return import_module("apex.normalization.fused_layer_norm").fused_rms_norm_affine, ""
    except Exception as error:  # whatever calls itself apex here
        return None, in_short(error)


def in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def agrees(norm: Any, device: torch.device) -> bool:
    """Whether the kernel gives the output of `norm` and both gradients, as float32 has them, to rounding. Rows are from
    small to large: in small ones epsilon shows.
    """
    generator = torch.Generator().manual_seed(0)
    dtype, shape = norm.weight.dtype, (2, 4, *norm.weight.shape)
    sizes = torch.logspace(-3, 2, 8).view(2, 4, 1)
    hidden, upward = (torch.randn(shape, generator=generator) for _ in range(2))
    weight = torch.rand(shape[2:], generator=generator) + 0.5
    given = [tensor.to(device, dtype) for tensor in (hidden * sizes, weight, upward)]
    plain = deepcopy(norm).to(device, torch.float32)

    def by_norm(x: torch.Tensor, w: torch.Tensor) -> Any:
        return torch.func.functional_call(plain, {"weight": w}, (x,))

    def by_kernel(x: torch.Tensor, w: torch.Tensor) -> Any:
        return fused_rms_norm(x, w, norm.variance_epsilon)

    expected = with_gradients(by_norm, *(tensor.float() for tensor in given))
    found = with_gradients(by_kernel, *given)
    rounding = max(2 * torch.finfo(dtype).eps, 1e-5)
    return all(
        a.dtype == dtype and bool(((a.float() - b).abs().amax(-1) <= rounding * b.abs().amax(-1)).all())
        for a, b in zip(found, expected, strict=True)
    )


def with_gradients(
    function: Callable[..., torch.Tensor], hidden: torch.Tensor, weight: torch.Tensor, upward: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    output = function(hidden, weight)
    return output.detach(), *torch.autograd.grad(output, (hidden, weight), upward)


def fused_forward(norm: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """The forward of a norm. Where autocast lowers what comes in and not the weights, the kernel has no such pair."""
    if hidden_states.dtype != norm.weight.dtype:
        return type(norm).forward(norm, hidden_states)  # type: ignore[no-any-return]
    return fused_rms_norm(hidden_states, norm.weight, norm.variance_epsilon)


def fused_rms_norm(hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The root mean square norm (arXiv 1910.07467) of the last dimension of `hidden`, times `weight` of the same dtype.

    PyTorch's protocol for its functions tells Gemini that the weight is used: it would not notice apex's.
    """
    if has_torch_function((hidden, weight)):
        return handle_torch_function(fused_rms_norm, (hidden, weight), hidden, weight, epsilon)
    kernel, _ = load_kernel()
    assert kernel is not None
    with torch.autocast(hidden.device.type, enabled=False):  # apex would lower float32 to autocast's dtype
        return kernel(hidden, weight, weight.shape, epsilon)
