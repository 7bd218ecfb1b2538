"""Matrix products of models on a CPU, by the faster of two libraries."""

import functools
from typing import Any

import torch

FEWEST = 16  # rows from which oneDNN is the faster one; fewer are bound by reading the weights


def use_onednn(model: Any) -> None:
    """Lets the linear layers of `model` that are float32 on a CPU be computed by oneDNN where no gradient is wanted.

    torch takes MKL for them, which uses AVX-512 on CPUs of Intel alone: on an EPYC with AVX-512, oneDNN computes 2.2 times
    as many per second (benchmarks/tasks.py). Results differ by rounding.
    """
    if not _works():
        return
    for module in model.modules():
        if type(module) is torch.nn.Linear and module.weight.dtype == torch.float32:
            # accelerate's hook, which reads the weight from disk first, calls what it found as `forward`.
            name = "_old_forward" if hasattr(module, "_hf_hook") else "forward"
            setattr(module, name, functools.partial(_linear, module))


def _linear(module: torch.nn.Linear, given: torch.Tensor) -> torch.Tensor:
    few = given.numel() < FEWEST * given.shape[-1]
    if few or torch.is_grad_enabled() or given.dtype != torch.float32 or given.device.type != "cpu":
        return torch.nn.functional.linear(given, module.weight, module.bias)
    return _product(given, module.weight, module.bias)


def _product(given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(given, weight, bias, "none", [], "")
    return made


def _works() -> bool:
    """Whether this build of torch has the operator, which is not among its documented ones, and it computes a product."""
    given, weight = torch.linspace(-1, 1, 16 * 24).view(16, 24), torch.linspace(-1, 1, 8 * 24).view(8, 24)
    try:
        made = _product(given, weight, None)
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(made, given @ weight.T, atol=1e-5)
