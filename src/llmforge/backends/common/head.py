"""The output head and the cross entropy in one piece, so that the logits of all tokens never exist at once.

For T tokens and V pieces the plain way holds T x V logits, their softmax and their gradient; at 100,000
pieces that is the memory peak of the whole step. Here the head runs over `chunk` tokens at a time, and since
the gradient of a summed cross entropy is known as soon as the logits are (softmax minus one-hot), it is taken
in the forward pass and the logits are forgotten (the idea of Liger Kernel, arXiv 2410.10989, and of Cut
Cross-Entropy, arXiv 2411.09009).
"""

from typing import Any

import torch
from torch.distributed import ReduceOp, all_reduce

from llmforge.backends.base import IGNORED
from llmforge.weights.modules import PLAIN, Logits

BLOCK = 16384  # rows of the matrix whose gradient is added at a time


def apply_in_place(products: torch.Tensor, logits_are: Logits) -> torch.Tensor | float | None:
    """Makes float32 logits of the products of states and head, and returns their derivative (None: 1 everywhere)."""
    scale, cap = logits_are.scale, logits_are.softcap
    if cap is None:
        if scale == 1.0:
            return None
        products *= scale
        return scale
    products.mul_(scale / cap).tanh_()
    slope = products.square().neg_().add_(1).mul_(scale)
    products *= cap
    return slope


def chunked_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    *,
    dtype: torch.dtype,
    chunk: int,
    trained_rows: tuple[int, int] | None = None,
    group: Any = None,
    first_row: int = 0,
    logits_are: Logits = PLAIN,
    kept: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the cross entropies of `targets`, and each of them.

    `hidden` (T, d), `weight` (V, d), `bias` (V,) or None, `targets` (T,) int64 with -100 to leave out. The
    products are computed in `dtype`, softmax in float32, and between them what `logits_are` says. The gradient of `weight` is taken for the rows of
    `trained_rows` alone (half-open), the others are 0. Returns a float32 scalar that carries gradients, and
    float32 (T,) that does not.

    `kept` (n,) int64 are the positions whose target is not -100, where the caller knows them: to find them is to wait
    for the device.

    In tensor parallelism each rank of the process group `group` holds the rows of the matrix from `first_row`
    on, and all have the same `hidden` and `targets`; loss and gradient of `hidden` come out the same on all.
    """
    total, losses = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        *(hidden, weight, bias, targets, dtype, chunk, trained_rows or (0, len(weight)), group, first_row),
        *(logits_are, kept),
    )
    return total, losses


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        dtype: torch.dtype,
        chunk: int,
        trained_rows: tuple[int, int],
        group: Any,
        first_row: int,
        logits_are: Logits,
        kept: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        first, last = trained_rows
        losses = torch.zeros(len(hidden), dtype=torch.float32, device=hidden.device)
        hidden_gradient = torch.zeros_like(hidden) if wants_hidden else None
        weight_gradient = (
            torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wants_weight else None
        )
        bias_gradient = (
            torch.zeros(bias.shape, dtype=torch.float32, device=bias.device)
            if bias is not None and wants_bias
            else None
        )
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(dtype)
            if kept is None:
                kept = (targets != IGNORED).nonzero().squeeze(1)
            for start in range(0, len(kept), chunk):
                rows = kept[start : start + chunk]
                states, labels = hidden[rows].to(dtype), targets[rows, None] - first_row
                logits = (states @ matrix.T).float()
                if bias is not None:
                    logits += bias
                slope = apply_in_place(logits, logits_are)
                # Softmax in place, by hand: torch.logsumexp costs several times as much on a CPU.
                largest = logits.amax(dim=1, keepdim=True)
                ours = torch.ones_like(labels, dtype=logits.dtype)
                if group is not None:
                    all_reduce(largest, ReduceOp.MAX, group=group)
                    ours = ((labels >= 0) & (labels < len(weight))).to(logits.dtype)
                    labels = labels.clamp(0, len(weight) - 1)
                label_logits = logits.gather(1, labels) * ours
                softmax = logits.sub_(largest).exp_()
                total = softmax.sum(dim=1, keepdim=True)
                if group is not None:
                    all_reduce(label_logits, group=group)
                    all_reduce(total, group=group)
                losses[rows] = (largest + total.log() - label_logits).squeeze(1)
                if hidden_gradient is None and weight_gradient is None:
                    continue
                gradient = softmax.div_(total).scatter_add_(1, labels, -ours)
                if slope is not None:
                    gradient *= slope
                if bias_gradient is not None:
                    bias_gradient += gradient.sum(dim=0)
                gradient = gradient.to(dtype)
                if hidden_gradient is not None:
                    hidden_gradient[rows] = (gradient @ matrix).to(hidden.dtype)
                if weight_gradient is not None:
                    # In blocks, as the product and its float32 copy would be as large as the matrix.
                    for begin in range(first, last, BLOCK):
                        block = slice(begin, min(begin + BLOCK, last))
                        weight_gradient[block] += gradient[:, block].T @ states
        if group is not None and hidden_gradient is not None:
            all_reduce(hidden_gradient, group=group)
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        return (
            None if hidden is None else hidden.mul_(scale),
            None if weight is None else weight.mul_(scale).to(ctx.weight_dtype),
            None if bias is None else bias.mul_(scale).to(ctx.weight_dtype),
            *(None,) * 8,
        )
