"""ColossalAI's data-parallel plugins: TorchDDP, and ZeRO stages 1 and 2 with or without the CPU (LowLevelZero)."""

from typing import Any

import torch
import torch.distributed as dist

from llmforge.backends.colossalai.engine import NO_SCALING, ColossalEngine
from llmforge.backends.colossalai.parts import Cut, Part


class TorchDDPEngine(ColossalEngine):
    """PyTorch's DDP through the Booster: float32 weights, products in bf16 or fp16 by autocast."""

    holds_float32 = True

    def _make_plugin(self) -> Any:
        from colossalai.booster.plugin import TorchDDPPlugin

        return TorchDDPPlugin(gradient_as_bucket_view=True)

    def _optimized(self) -> list[torch.nn.Parameter]:
        return [p for p in self.causal.parameters() if p.requires_grad]

    def _parts(self) -> list[Part]:
        return [self._whole_part(name, parameter) for name, parameter in self._trained()]

    def _publish_masters(self) -> None:
        """Its weights are float32 themselves."""

    def _whole_part(self, name: str, parameter: torch.nn.Parameter) -> Part:
        """A parameter that is float32 and its own master."""
        return self._make_part(
            *(name, parameter.shape, lambda: parameter.data.view(-1), lambda: flat(parameter.grad)), parameter
        )


class ZeroParts(ColossalEngine):
    """Parts of ColossalAI's LowLevelZeroOptimizer: each rank has one of equal, flat shares of every parameter."""

    def _zero_parts(self) -> list[Part]:
        store = self.optimizer
        # Its own norm is not asked for, costs a pass over the gradients, and waits forever for a pipeline stage that
        # has nothing to train.
        store._compute_grad_norm = lambda *_, **__: 0.0
        parts = []
        for name, parameter in self._trained():
            master = store.working_to_master_param[id(parameter)]
            parts.append(
                self._make_part(
                    name,
                    parameter.shape,
                    lambda master=master: master,
                    lambda parameter=parameter: self._zero_gradient(parameter),
                    key=master,
                    start=master.numel() * dist.get_rank(self.cut.shards),
                )
            )
        return parts

    def _zero_gradient(self, parameter: torch.nn.Parameter) -> torch.Tensor | None:
        gradient: torch.Tensor | None = self.optimizer.get_working_grad_by_param_id(id(parameter))
        return None if gradient is None else gradient.view(-1)

    def _publish_zero(self) -> None:
        store = self.optimizer
        for _, parameter in self._trained():
            master = store.working_to_master_param[id(parameter)].to(self.device, self.dtype)
            padded = store._working_param_to_padded_working_param[parameter]
            dist.all_gather_into_tensor(padded, master, group=self.cut.shards)
            parameter.data.copy_(padded[: parameter.numel()].view(parameter.shape))


class ZeroEngine(ZeroParts):
    """LowLevelZeroPlugin: `zero1`, `zero2`, and `zero2_cpu`, which keeps masters and moments on the host."""

    def _make_plugin(self) -> Any:
        from colossalai.booster.plugin import LowLevelZeroPlugin

        return LowLevelZeroPlugin(
            stage=1 if self.name == "zero1" else 2,
            precision=self.precision,
            cpu_offload=self.name == "zero2_cpu",
            **NO_SCALING,
        )

    def _cut(self) -> Cut:
        return Cut(self.device, shards=dist.group.WORLD, owner=self.world.rank)

    def _parts(self) -> list[Part]:
        return self._zero_parts()

    def _publish_masters(self) -> None:
        self._publish_zero()


def flat(gradient: torch.Tensor | None) -> torch.Tensor | None:
    return None if gradient is None else gradient.view(-1)
