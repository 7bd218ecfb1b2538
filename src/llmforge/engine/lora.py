"""Low-rank adapters through peft (arXiv 2106.09685): the base stays as it is, and what is saved is merged."""

from collections.abc import Mapping
from typing import Any

import torch

from llmforge.engine import storage
from llmforge.errors import UserError

SCALE = 2  # what the product of two adapters is multiplied by before it is added


class Lora:
    """Adapters of rank `rank` on every linear layer but the head, scaled by 2 (alpha = 2 x rank)."""

    def __init__(self, causal: Any, rank: int | None, seed: int) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise UserError("--trainable lora needs peft: pip install 'llmforge[lora]'.") from None
        assert rank is not None
        self.causal = causal
        before = storage.unique_state(causal)
        head = [n for n, m in causal.named_modules() if m is causal.get_output_embeddings()]
        linear = {
            n.rsplit(".", 1)[-1]
            for n, m in causal.named_modules()
            if isinstance(m, torch.nn.Linear) and n not in head
        }
        torch.manual_seed(seed)
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=sorted(linear)), causal
        )
        self.names = list(before)

    def merged(self) -> dict[str, torch.Tensor]:
        """Copies of the weights under their own names, the adapters added in."""
        state = self.causal.state_dict()
        modules = dict(self.causal.named_modules())
        weights = {}
        for name in self.names:
            module_name, _, part = name.rpartition(".")
            inner = f"{module_name}.base_layer.{part}"
            if inner in state and part == "weight":
                delta = modules[module_name].get_delta_weight("default")
                weights[name] = (state[inner] + delta).detach().cpu()
            else:
                weights[name] = state[inner if inner in state else name].detach().cpu()
        return weights

    def merge(
        self, base: Mapping[str, torch.Tensor], adapters: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The float32 weights `base` under their own names, with `adapters` (under peft's names) added in."""
        weights = dict(base)
        for name, down in adapters.items():
            module, found, _ = name.partition(".lora_A.")
            if found:
                up = adapters[name.replace(".lora_A.", ".lora_B.")]
                weights[f"{module}.weight"] = weights[f"{module}.weight"] + SCALE * (up @ down)
        return weights
