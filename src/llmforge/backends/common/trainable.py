"""Which parameters a stage trains, and which rows of the embeddings. Imports no torch to read `--trainable`."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmforge.errors import UsageError

if TYPE_CHECKING:
    import torch

ALL, EMBEDDINGS, NEW_EMBEDDINGS, LORA = "all", "embeddings", "new-embeddings", "lora"
_RANGE = re.compile(r"(\d+)?(-)?(\d+)?")


@dataclass(frozen=True)
class Trainable:
    """What `--trainable` asks for: `layers` are half-open ranges, with None for "to the last layer"."""

    everything: bool = False
    embeddings: bool = False
    new_rows_only: bool = False
    lora: bool = False
    layers: tuple[tuple[int, int | None], ...] = ()

    @property
    def inside_layers(self) -> bool:
        """Whether weights of the layers themselves are trained, adapters not counted."""
        return self.everything or bool(self.layers)

    @property
    def source_weights(self) -> bool:
        """Whether any weight of the source is trained: not with adapters and rows of new tokens alone."""
        return self.inside_layers or (self.embeddings and not self.new_rows_only)


def parse(text: str) -> Trainable:
    """Reads `all`, `lora` (alone or with `new-embeddings`), or a comma-separated mix of `embeddings` or `new-embeddings`
    and layer ranges (`0-3,28-`).
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if words == [ALL]:
        return Trainable(everything=True)
    if words == [LORA]:
        return Trainable(lora=True)
    if sorted(words) == [LORA, NEW_EMBEDDINGS]:
        return Trainable(lora=True, embeddings=True, new_rows_only=True)
    layers: list[tuple[int, int | None]] = []
    for word in words:
        if word in (EMBEDDINGS, NEW_EMBEDDINGS):
            continue
        match = _RANGE.fullmatch(word)
        if word in (ALL, LORA) or match is None or not (match[1] or match[3]):
            raise UsageError(
                f"--trainable {text}: {word!r} is not one of {ALL}, {LORA}, {EMBEDDINGS}, {NEW_EMBEDDINGS} "
                f"or layers such as 0-3 or 28-; {ALL} cannot be combined with others, and {LORA} with {NEW_EMBEDDINGS} alone."
            )
        first = int(match[1] or 0)
        end = first + 1 if not match[2] else int(match[3]) + 1 if match[3] else None
        if end is not None and end <= first:
            raise UsageError(f"--trainable {text}: the range {word} is empty.")
        layers.append((first, end))
    if not words or (EMBEDDINGS in words and NEW_EMBEDDINGS in words):
        raise UsageError(
            f"--trainable {text!r}: name one of {ALL}, {LORA}, {EMBEDDINGS}, {NEW_EMBEDDINGS} or layers."
        )
    new = NEW_EMBEDDINGS in words
    return Trainable(embeddings=new or EMBEDDINGS in words, new_rows_only=new, layers=tuple(layers))


def freeze(model: Any, trainable: Trainable) -> None:
    """Sets `requires_grad` on the parameters of a transformers causal model; adapters, which are added later, set it
    themselves.
    """
    if trainable.lora:
        return
    from llmforge.weights.modules import decoder_layers

    embeddings = {id(p) for p in embedding_parameters(model).values()}
    layers = decoder_layers(model)
    chosen: set[int] = set()
    for first, end in trainable.layers:
        if max(first + 1, end or 0) > len(layers):
            raise UsageError(
                f"--trainable names layer {max(first, (end or 1) - 1)}, the last is {len(layers) - 1}."
            )
        chosen.update(id(p) for layer in list(layers)[first:end] for p in layer.parameters())
    for parameter in model.parameters():
        is_embedding = id(parameter) in embeddings
        parameter.requires_grad_(
            trainable.everything or (is_embedding and trainable.embeddings) or id(parameter) in chosen
        )


def embedding_parameters(model: Any) -> "dict[str, torch.nn.Parameter]":
    """Name to parameter of the input embeddings and the output head; one entry where they are tied."""
    wanted = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in wanted}


def linear_matrices(model: Any) -> "dict[str, torch.nn.Linear]":
    """The linear layers inside the decoder layers, by the names of their weights."""
    import torch

    from llmforge.weights.modules import decoder_layers

    inside = {id(module) for layer in decoder_layers(model) for module in layer.modules()}
    return {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and id(module) in inside
    }
