"""Low-rank adapters through peft (arXiv 2106.09685): the base stays as it is, and what is saved is merged."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from llmforge.backends.common import storage
from llmforge.backends.common.settings import Adapters, Settings
from llmforge.console import warn
from llmforge.errors import UserError
from llmforge.weights.modules import decoder_layers


class Lora:
    """The adapters that `wanted` describes.

    `initial` are the values that they begin with, by name: of a model on the meta device they would be lost.
    """

    def __init__(self, causal: Any, wanted: Adapters, seed: int) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise UserError("--trainable lora needs peft: pip install 'llmforge[lora]'.") from None
        self.causal, self.scale = causal, wanted.scale
        before = storage.unique_state(causal)
        head = [n for n, m in causal.named_modules() if m is causal.get_output_embeddings()]
        linear = {
            n.rsplit(".", 1)[-1]
            for n, m in causal.named_modules()
            if isinstance(m, torch.nn.Linear) and n not in head
        }
        if not linear:
            raise UserError(
                f"--trainable lora adapts linear layers, and a {causal.config.model_type} model has none (its layers are "
                "of another kind); use --trainable all or layers such as 0-3."
            )
        if unknown := sorted(set(wanted.targets) - linear):
            raise UserError(
                f"--lora-targets {unknown[0]}: the model has no linear layer of this name; it has {', '.join(sorted(linear))}."
            )
        torch.manual_seed(seed)
        made: dict[torch.nn.Module, torch.Tensor] = {}
        hook = register_module_parameter_registration_hook(
            lambda module, _, parameter: made.update({module: parameter.detach()})
        )
        try:
            config = LoraConfig(
                r=wanted.rank,
                lora_alpha=wanted.scale * wanted.rank,
                target_modules=sorted(wanted.targets or linear),
            )
            inject_adapter_in_model(config, causal)
        finally:
            hook.remove()
        self.names = list(before)
        self.unreached = {} if wanted.targets else _unreached(causal)
        self.initial = {f"{n}.weight": made[m] for n, m in causal.named_modules() if m in made}

    @classmethod
    def of(cls, causal: Any, settings: Settings, tell: bool) -> "Lora | None":
        """The adapters that `settings` ask for; `tell`: what they do not reach is said."""
        if not settings.trainable.lora:
            return None
        assert settings.lora
        made = cls(causal, settings.lora, settings.seed)
        if tell:
            made.say_unreached()
        return made

    def say_unreached(self) -> None:
        """Says which matrices of the layers have no adapter: experts that are one tensor, and no linear layers."""
        if self.unreached:
            warn(
                f"--trainable lora adapts linear layers alone: {len(self.unreached)} tensors of this model "
                f"({sum(p.numel() for p in self.unreached.values()):,} parameters; the first is {next(iter(self.unreached))}) "
                "are not (for example joined experts) and stay unchanged; name layers in --trainable to train them."
            )

    def base(self) -> dict[str, torch.Tensor]:
        """The tensors that the adapters are added to, and all others of the model, under their own names."""
        state = self.causal.state_dict()
        inner = {name: "{}.base_layer.{}".format(*name.rsplit(".", 1)) for name in self.names}
        return {name: state[inner[name] if inner[name] in state else name] for name in self.names}

    def merged(
        self, rows: Callable[[torch.Tensor], torch.Tensor], whole: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """`rows` of every weight on the CPU under its own name, the adapters added in.

        `rows` gives those of a tensor that this rank holds, `whole` all of them. Where rows are shared, a weight and
        the second of its adapters are cut alike, so only the first must be whole, which is small.
        """
        modules = dict(self.causal.named_modules())
        weights = {}
        for name, tensor in self.base().items():
            module, _, part = name.rpartition(".")
            values = rows(tensor).detach()
            if part == "weight" and hasattr(modules[module], "lora_A"):
                down, up = (modules[module].get_submodule(f"lora_{x}.default").weight for x in "AB")
                values = values + self.scale * (rows(up).detach() @ whole(down).detach())
            weights[name] = values.cpu()
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
                weights[f"{module}.weight"] = weights[f"{module}.weight"] + self.scale * (up @ down)
        return weights


def _unreached(causal: Any) -> dict[str, torch.Tensor]:
    """The matrices of the layers of `causal` without an adapter, by name."""
    return {
        f"{path}.{name}" if path else name: parameter
        for path, module in decoder_layers(causal).named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() >= 2 and not parameter.requires_grad and not isinstance(module, torch.nn.Linear)
    }
