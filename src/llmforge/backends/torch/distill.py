"""The next-token distribution of the source model as a second target, so that it is not forgotten (knowledge distillation,
arXiv 1503.02531; from the model before training, arXiv 1606.09282).
"""

from collections.abc import Callable
from typing import Any

import torch

from llmforge.backends.base import MicroBatch
from llmforge.backends.common import packing
from llmforge.backends.common.documents import Documents
from llmforge.backends.common.head import apply_in_place
from llmforge.backends.common.model import load_model, own_memory
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.modules import Logits


class Teacher:
    """The model `source` in `dtype` on `device`, whole on every rank; nothing of it is trained.

    Its loss is `weight` x KL(source || model), summed over the positions where the source can say something: those
    whose text up to there, in their document, and whose target have ids below `old_rows` alone. Both distributions are over
    these ids.
    """

    def __init__(
        self,
        source: ModelDirectory,
        kernel: str,
        old_rows: int,
        weight: float,
        dtype: torch.dtype,
        device: torch.device,
        chunk: int,
    ) -> None:
        causal = load_model(source, kernel, dtype)
        if device.type == "cpu":
            own_memory(causal)
        self.causal = causal.requires_grad_(False).eval().to(device)
        self.logits_are = packing.way_of(causal).logits
        self.old_rows, self.weight, self.dtype, self.chunk = old_rows, weight, dtype, chunk

    def positions(self, batch: MicroBatch) -> torch.Tensor:
        """(n,) int64 on the CPU: the positions of its loss, in the rows of `batch` (on the CPU) laid end to end."""
        seen = (batch.input_ids >= self.old_rows).cumsum(dim=1)
        start = torch.arange(seen.shape[1]) - batch.positions  # of the document
        before = torch.where(start > 0, seen.gather(1, (start - 1).clamp(min=0)), 0)
        target = (batch.targets >= 0) & (batch.targets < self.old_rows)
        return ((seen == before) & target).flatten().nonzero().squeeze(1)

    def loss(
        self,
        batch: MicroBatch,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        logits_are: Logits,
        trains_old_rows: bool,
    ) -> torch.Tensor:
        """A scalar with gradients, of the model's `hidden` (rows * length, width) and its head."""
        assert batch.distilled is not None
        with torch.no_grad():
            states = self.causal.base_model(
                input_ids=batch.input_ids.masked_fill(batch.input_ids >= self.old_rows, 0),
                position_ids=batch.positions,
                use_cache=False,
                documents=Documents(batch.lengths, batch.input_ids.device, batch.padded),
            ).last_hidden_state.flatten(0, 1)
        head, old = self.causal.get_output_embeddings(), self.old_rows
        theirs = None if head.bias is None else head.bias[:old]

        def log_probabilities(rows: torch.Tensor) -> torch.Tensor:
            return _logits(states[rows], head.weight[:old], theirs, self.dtype, self.logits_are)[
                0
            ].log_softmax(1)

        total: torch.Tensor = _Divergence.apply(  # type: ignore[no-untyped-call]
            *(
                hidden,
                weight,
                bias,
                log_probabilities,
                batch.distilled,
                old,
                self.dtype,
                self.chunk,
                logits_are,
            ),
            trains_old_rows,
        )
        return self.weight * total


def _logits(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype, are: Logits
) -> tuple[torch.Tensor, Any]:
    """float32 logits of `states`, and their derivative by the products (None: 1)."""
    logits = (states.to(dtype) @ weight.to(dtype).T).float()
    if bias is not None:
        logits += bias
    return logits, apply_in_place(logits, are)


class _Divergence(torch.autograd.Function):
    """The sum of KL divergences, whose gradient is taken in the forward pass, `chunk` positions at a time, as in
    `llmforge.backends.common.head`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        log_probabilities: Callable[[torch.Tensor], torch.Tensor],
        kept: torch.Tensor,
        old: int,
        dtype: torch.dtype,
        chunk: int,
        logits_are: Logits,
        trains_old_rows: bool,
    ) -> torch.Tensor:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        hidden_gradient = torch.zeros_like(hidden) if wants_hidden else None
        tables = [
            torch.zeros(table.shape, dtype=torch.float32, device=table.device)
            if wants and table is not None and trains_old_rows
            else None
            for wants, table in ((wants_weight, weight), (wants_bias, bias))
        ]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight[:old].to(dtype)
            for begin in range(0, len(kept), chunk):
                rows = kept[begin : begin + chunk]
                states, theirs = hidden[rows].to(dtype), log_probabilities(rows)
                logits, slope = _logits(
                    states, matrix, None if bias is None else bias[:old], dtype, logits_are
                )
                ours, wanted = logits.log_softmax(1), theirs.exp()
                total += (wanted * (theirs - ours)).sum()
                gradient = ours.exp_().sub_(wanted)
                if slope is not None:
                    gradient *= slope
                if tables[1] is not None:
                    tables[1][:old] += gradient.sum(dim=0)
                gradient = gradient.to(dtype)
                if hidden_gradient is not None:
                    hidden_gradient[rows] = (gradient @ matrix).to(hidden.dtype)
                if tables[0] is not None:
                    tables[0][:old] += gradient.T @ states
        ctx.save_for_backward(hidden_gradient, *tables)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, *tables = ctx.saved_tensors
        return (
            None if hidden is None else hidden.mul_(scale),
            *(None if table is None else table.mul_(scale).to(ctx.weight_dtype) for table in tables),
            *(None,) * 7,
        )
