"""How each decoder layer runs: its forward pass compiled, its activations computed again in the backward pass, or both."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from llmforge.weights.modules import decoder_layers


def prepare_layers(causal: Any, *, compiled: bool, recomputed: bool) -> None:
    """Changes `forward` of the decoder layers of `causal`; hooks of a layer (FSDP2's) stay outside of both.

    Compilation is inside of recomputation: transformers' own recomputation is part of `forward`, and torch.compile leaves
    a layer as it is where a call that it cannot compile (attention's) is inside of a checkpoint.
    """
    for layer in decoder_layers(causal):
        if compiled:
            layer.forward = torch.compile(layer.forward)
        if recomputed:
            layer.forward = partial(_recomputed, layer, layer.forward)


def _recomputed(layer: torch.nn.Module, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """`forward` without what it would keep for the backward pass (arXiv 1604.06174)."""
    if not (layer.training and torch.is_grad_enabled()):
        return forward(*inputs, **options)
    return checkpoint(forward, *inputs, use_reentrant=False, **options)
