"""Gemini: weights, gradients and optimizer state in chunks that the ranks share and that move to the host and back."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from llmforge.backends.base import MicroBatch
from llmforge.backends.colossalai.engine import NO_SCALING, ColossalEngine, Losses
from llmforge.backends.colossalai.parts import Cut, Part
from llmforge.backends.common.model import CausalLoss

MEGA = 1024**2


class GeminiEngine(ColossalEngine):
    """GeminiPlugin: `gemini` (static placement) and `gemini_auto`."""

    precisions = ("bf16", "fp16")

    def _make_plugin(self) -> Any:
        from colossalai.booster.plugin import GeminiPlugin

        # Below `min_chunk_size_m` all weights lie in one chunk that every rank holds whole; 0.5.0 adds up the
        # gradients of accumulated micro-batches wrongly there. A quarter of the model always makes real chunks.
        trained = sum(p.numel() for p in self._optimized()) / MEGA
        size = min(32.0, trained / 4)
        return GeminiPlugin(
            placement_policy="auto" if self.name == "gemini_auto" else "static",
            precision=self.precision,
            enable_gradient_accumulation=True,
            min_chunk_size_m=size,
            search_range_m=size,
            hidden_dim=int(self.causal.config.hidden_size),
            pin_memory=not self.rehearse,
            enable_async_reduce=not self.rehearse,
            **NO_SCALING,
        )

    def _optimized(self) -> list[torch.nn.Parameter]:
        return [p for p in self.causal.parameters() if p.requires_grad]

    def _module(self) -> torch.nn.Module:
        return GeminiLoss(self.causal, self.dtype, self.settings.head_chunk, self.rows)

    def _cut(self) -> Cut:
        return Cut(self.device, shards=dist.group.WORLD, owner=self.world.rank)

    def _parts(self) -> list[Part]:
        optimizer = self.optimizer
        names = {id(p): name for name, p in self.causal.named_parameters()}
        parts = []
        for number, parameter in optimizer.id_to_real_params.items():
            name = names[id(parameter)]
            fake = optimizer.id_to_fake_params.get(number)
            if fake is None:  # no element of it lies in this rank's share of its chunk
                nothing = torch.empty(0, device=self.device)
                parts.append(
                    self._make_part(name, self.names.shapes[name], lambda n=nothing: n, lambda: None, None)
                )
                continue
            start, end = optimizer.param_to_range[fake]
            chunk = optimizer.param_to_chunk16[fake]
            parts.append(
                self._make_part(
                    name,
                    self.names.shapes[name],
                    lambda c=chunk, a=start, b=end: c.paired_chunk.payload[a:b],
                    lambda c=chunk, a=start, b=end: c.grad_chunk.payload[a:b] if c.grad_chunk else None,
                    key=fake,
                    start=optimizer.get_offsets(number)[1],
                )
            )
        return parts

    def _publish_masters(self) -> None:
        for chunk in self.optimizer.chunk16_set:
            chunk.optim_update()

    def _discard(self) -> None:
        self.optimizer.zero_grad()
        # Its own way of passing over a step leaves this on, and the next step adds to the gradients of this one.
        self.optimizer.chunk_manager.accumulating_grads = False

    def _losses(self, micro_batches: Sequence[MicroBatch]) -> Losses:
        manager = self.model.gemini_manager
        if manager.need_warmup and manager.is_warmup():
            # Placement "auto" learns the order of chunks from one step, and evaluates only after it.
            with torch.enable_grad():
                self._backward(micro_batches[:1], 0.0)
            self._discard()
        return super()._losses(micro_batches)


class GeminiLoss(CausalLoss):
    """Tells Gemini when the head's matrix is used: it watches PyTorch's functions, not ours."""

    def cross_entropy(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        kept: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        from colossalai.tensor.param_op_hook import ColoParamOpHookManager

        parameters = [weight] if bias is None else [weight, bias]
        with torch._C.DisableTorchFunction():
            hidden, *used = ColoParamOpHookManager.pre_op(parameters, hidden, *parameters)
            matrix, added = used[0], used[1] if bias is not None else None
            total, losses = super().cross_entropy(hidden, matrix, added, targets, kept)
            total = ColoParamOpHookManager.post_op(parameters, (total,))[0]
        return total, losses
