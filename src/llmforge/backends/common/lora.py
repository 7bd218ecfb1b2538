"""Low-rank adapters through peft (arXiv 2106.09685): the base stays as it is, and what is saved is merged, with the
adapter as peft reads it beside it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from llmforge.backends.common import storage
from llmforge.backends.common.peft_files import PeftAdapter, configuration, peft_name
from llmforge.backends.common.settings import Adapters, Settings
from llmforge.backends.common.trainable import embedding_parameters
from llmforge.console import warn
from llmforge.errors import UserError
from llmforge.weights.modules import decoder_layers

Rows = Callable[[torch.Tensor], torch.Tensor]


class Lora:
    """The adapters that `wanted` describes.

    `initial` are the values that they begin with, by name: of a model on the meta device they would be lost.
    """

    def __init__(self, causal: Any, wanted: Adapters, seed: int) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise UserError("--trainable lora needs peft: pip install 'llmforge[lora]'.") from None
        self.causal, self.wanted, self.scale = causal, wanted, wanted.scale
        before = storage.unique_state(causal)
        self.targets = adapted_names(wanted.targets, linear_layers(causal), causal.config.model_type)
        torch.manual_seed(seed)
        made: dict[torch.nn.Module, torch.Tensor] = {}
        hook = register_module_parameter_registration_hook(
            lambda module, _, parameter: made.update({module: parameter.detach()})
        )
        try:
            config = LoraConfig(
                r=wanted.rank,
                lora_alpha=wanted.alpha_or_default,
                use_rslora=wanted.stabilized,
                lora_dropout=wanted.dropout,
                use_dora=wanted.decomposed,
                target_modules=self.targets,
            )
            inject_adapter_in_model(config, causal)
        finally:
            hook.remove()
        self.names = list(before)
        self.unreached = {} if wanted.targets else _unreached(causal)
        drawn = {m: values for m, values in made.items() if not values.is_meta}
        self.initial = {f"{n}.weight": drawn[m] for n, m in causal.named_modules() if m in drawn}

    @classmethod
    def of(cls, causal: Any, settings: Settings, tell: bool) -> "Lora | None":
        """The adapters that `settings` ask for; `tell`: what they do not reach is said."""
        if not settings.trainable.lora:
            return None
        assert settings.lora
        made = cls(causal, settings.lora, settings.seed)
        if settings.trainable.embeddings:  # peft has frozen all that is no adapter
            for table in embedding_parameters(causal).values():
                table.requires_grad_(True)
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

    def begin(self, rows: Callable[[torch.Tensor], tuple[torch.Tensor, int]]) -> None:
        """Gives adapters that were made on the meta device their values, once the base has its own. `rows` gives those of
        a tensor that this rank holds, and the number of the first.
        """
        with torch.no_grad():
            for name, values in self.initial.items():
                part, first = rows(self.causal.get_parameter(name))
                part.copy_(values[first : first + len(part)])
            for module in self.causal.modules():
                if self.wanted.decomposed and hasattr(module, "lora_A"):  # the adapters begin as zero
                    base = rows(module.base_layer.weight)[0]
                    rows(_magnitude(module))[0].copy_(torch.linalg.norm(base, dim=1))
        self.initial.clear()

    def merged(self, rows: Rows, whole: Rows) -> dict[str, torch.Tensor]:
        """`rows` of every weight on the CPU under its own name, the adapters added in.

        `rows` gives those of a tensor that this rank holds, `whole` all of them. Where rows are shared, a weight, the
        second of its adapters and its norms are cut alike, so only the first must be whole, which is small.
        """
        modules = dict(self.causal.named_modules())
        trained = {name for name, parameter in self.causal.named_parameters() if parameter.requires_grad}
        weights = {}
        for name, tensor in self.base().items():
            module, _, part = name.rpartition(".")
            values = rows(tensor).detach()
            if part == "weight" and hasattr(modules[module], "lora_A"):
                down, up = (modules[module].get_submodule(f"lora_{x}.default").weight for x in "AB")
                values = values + self.scale * (rows(up).detach() @ whole(down).detach())
                if self.wanted.decomposed:
                    norms = torch.linalg.norm(values, dim=1)
                    values = (rows(_magnitude(modules[module])).detach() / norms)[:, None] * values
            weights[name] = values.to("cpu", copy=name in trained)
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

    def as_peft_reads(self, trained: Mapping[str, torch.Tensor], settings: Settings) -> PeftAdapter:
        """What is trained as an adapter for peft: `trained` are the adapters on the CPU under their names in the model, and
        the rows of new tokens under the names of their embeddings.
        """
        tables = [name.removesuffix(".weight") for name in embedding_parameters(self.causal)]
        rows = (settings.old_rows, settings.rows) if settings.trainable.embeddings else None
        return PeftAdapter(
            configuration(self.wanted, self.targets, settings.model.path, tables, rows),
            {peft_name(name): tensor for name, tensor in trained.items()},
        )


def linear_layers(causal: Any) -> dict[str, list[torch.nn.Linear]]:
    """The linear layers of `causal` but the head, by the last parts of their names."""
    found: dict[str, list[torch.nn.Linear]] = {}
    for name, module in causal.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not causal.get_output_embeddings():
            found.setdefault(name.rsplit(".", 1)[-1], []).append(module)
    return found


def adapted_names(targets: Sequence[str], linear: Collection[str], kind: str) -> list[str]:
    """Which of the layers `linear` (last parts of names) of a model of type `kind` get adapters: `targets`, or all."""
    if not linear:
        raise UserError(
            f"--trainable lora adapts linear layers, and a {kind} model has none (its layers are "
            "of another kind); use --trainable all or layers such as 0-3."
        )
    if unknown := sorted(set(targets) - set(linear)):
        raise UserError(
            f"--lora-targets {unknown[0]}: the model has no linear layer of this name; it has {', '.join(sorted(linear))}."
        )
    return sorted(set(targets or linear))


def _magnitude(module: Any) -> torch.Tensor:
    """The trained norms of the rows of an adapted weight, (rows,)."""
    norms: torch.Tensor = module.get_submodule("lora_magnitude_vector.default").weight
    return norms


def _unreached(causal: Any) -> dict[str, torch.Tensor]:
    """The matrices of the layers of `causal` without an adapter, by name."""
    return {
        f"{path}.{name}" if path else name: parameter
        for path, module in decoder_layers(causal).named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() >= 2 and not parameter.requires_grad and not isinstance(module, torch.nn.Linear)
    }
