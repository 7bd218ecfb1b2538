"""The sizes of a model, from its configuration alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmforge.backends.common.lora import adapted_names, linear_layers
from llmforge.backends.common.trainable import Trainable, parse
from llmforge.train.lora_options import LoraOptions
from llmforge.weights.architecture import attention_heads, experts_per_token, head_widths, mlp_width
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.modules import decoder_layers, empty_causal


@dataclass(frozen=True)
class Shape:
    """The sizes of a causal model, counted from the modules that transformers makes of its configuration.

    `per_layer` are the parameters of each layer, `active_per_layer` those that a token meets (of experts, those it
    goes to). `value_width` differs from `head_width` in multi-head latent attention alone. `linear` has, by the last
    parts of their names, the sums of (inputs + outputs) and of outputs of the linear layers that get adapters; `kind` is the
    model's type.
    """

    layers: int
    width: int
    intermediate: int
    heads: int
    head_width: int
    value_width: int
    vocabulary: int
    tied: bool
    parameters: int
    per_layer: tuple[int, ...]
    active_per_layer: tuple[int, ...]
    kind: str
    linear: Mapping[str, tuple[int, int]]

    @property
    def layer_parameters(self) -> int:
        return sum(self.per_layer) // self.layers

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.width * (1 if self.tied else 2)

    def trained(self, trainable: str) -> int:
        """Parameters of the model that `--trainable` updates, without adapters; for new-embeddings the whole matrix, whose
        gradient is masked.
        """
        wanted = parse(trainable)
        if wanted.everything:
            return self.parameters
        return (
            sum(self.per_layer[i] for i in self._chosen(wanted))
            + self.embedding_parameters * wanted.embeddings
        )

    def adapters(self, lora: LoraOptions) -> int:
        """Parameters of the adapters; 0 without a rank."""
        if lora.lora_rank is None:
            return 0
        chosen = [self.linear[name] for name in adapted_names(lora.lora_targets, self.linear, self.kind)]
        return sum(lora.lora_rank * both + lora.dora * outputs for both, outputs in chosen)

    def trains_embeddings(self, trainable: str) -> bool:
        wanted = parse(trainable)
        return wanted.everything or wanted.embeddings

    def flops_per_token(self, trainable: str, visible: float) -> float:
        """Model FLOPs of one token's step: forward, the way back through activations, and gradients of
        weights.

        Two per weight of every product that the token meets (the head's included, the embedding lookup not), and 2 x
        heads x (head width + value width) per visible key and layer. No recomputation counts.
        """
        head, forward = self.vocabulary * self.width, self.forward_flops(visible)
        wanted = parse(trainable)
        if wanted.everything:
            return 3 * forward
        layers = sum(self.active_per_layer[i] for i in self._chosen(wanted))
        return 2 * forward + 2 * (layers + head * wanted.embeddings)

    def forward_flops(self, visible: float) -> float:
        """Of one token's forward pass."""
        weights = sum(self.active_per_layer) + self.vocabulary * self.width
        return 2 * weights + 2 * self.layers * self.heads * (self.head_width + self.value_width) * visible

    def _chosen(self, wanted: Trainable) -> set[int]:
        return {i for first, end in wanted.layers for i in range(self.layers)[first:end]}


def read_shape(model: ModelDirectory) -> Shape:
    """The shape of `model`, of whose files only the configuration is read."""
    causal = empty_causal(model.config, model.path)
    config = causal.config
    embedding, head = causal.get_input_embeddings().weight, causal.get_output_embeddings().weight
    layers, share = decoder_layers(causal), experts_per_token(config)
    counts = [dict.fromkeys(layer.parameters()) for layer in layers]
    head_width, value_width = head_widths(config)
    return Shape(
        layers=len(layers),
        width=config.hidden_size,
        intermediate=mlp_width(config),
        heads=attention_heads(config),
        head_width=head_width,
        value_width=value_width,
        vocabulary=len(embedding),
        tied=embedding is head,
        parameters=causal.num_parameters(),
        per_layer=tuple(sum(p.numel() for p in layer) for layer in counts),
        active_per_layer=tuple(_active(layer, share) for layer in layers),
        kind=config.model_type,
        linear={
            name: (
                sum(one.in_features + one.out_features for one in found),
                sum(one.out_features for one in found),
            )
            for name, found in linear_layers(causal).items()
        },
    )


def _active(layer: Any, share: int) -> int:
    """Parameters of `layer` that one token meets, where `share` of its experts are given each token."""
    total = 0
    for name, parameter in layer.named_parameters():
        # Experts are matrices in one tensor (three dimensions), or modules in a list, by number.
        experts = parameter.shape[0] if parameter.ndim == 3 else 1
        if experts == 1 and ".experts." in f".{name}" and parameter.ndim <= 2:
            parent = layer.get_submodule(name[: f".{name}".index(".experts.") + len("experts")])
            experts = len(parent) if hasattr(parent, "__len__") else parameter.shape[0]
        total += parameter.numel() * min(share, experts) // experts if experts > 1 else parameter.numel()
    return total
