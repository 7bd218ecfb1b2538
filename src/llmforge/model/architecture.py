"""Where the vocabulary lives in a model: the input embedding, the head, the sizes in its configuration."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmforge.errors import UserError
from llmforge.model.config import CONFIG, TEXT_PARTS, load_config
from llmforge.model.weights import Tensor, Weights

# The last parts of the names that transformers' causal language models use. A checkpoint may have been saved
# with or without the prefix of its base model ("model.", "transformer.", "gpt_neox.").
EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "embeddings.weight",
)
HEADS = ("lm_head.weight", "embed_out.weight")
HEAD_BIASES = ("lm_head.bias", "embed_out.bias")


@dataclass(frozen=True)
class VocabularyTensors:
    """The tensors with one row per id: `head` is None in a tied model; `aliases` are copies of the
    embedding's bytes.
    """

    embedding: Tensor
    head: Tensor | None
    head_bias: Tensor | None
    aliases: tuple[str, ...] = ()

    @property
    def tied(self) -> bool:
        return self.head is None

    @property
    def rows(self) -> int:
        return self.embedding.rows

    def names(self) -> dict[str, str]:
        """What each tensor is ("embedding", "head", "head_bias") by its name."""
        roles = {"embedding": self.embedding, "head": self.head, "head_bias": self.head_bias}
        return {tensor.name: role for role, tensor in roles.items() if tensor is not None}


def with_vocabulary_size(config: dict[str, Any], size: int) -> dict[str, Any]:
    """A copy of `config` that states `size` rows, in the text part of a configuration that has parts."""
    parts = {
        key: with_vocabulary_size(part, size) for key, part in config.items() if _is_text_part(key, part)
    }
    top = {"vocab_size": size} if "vocab_size" in config or not parts else {}
    return {**config, **parts, **top}


def _is_text_part(key: str, part: object) -> bool:
    return key in TEXT_PARTS and isinstance(part, dict)


def find_vocabulary_tensors(weights: Weights, config: dict[str, Any]) -> VocabularyTensors:
    """The embedding and the head among `weights`.

    A model is tied when it stores no head of its own, or one that is the embedding again, byte for byte.
    Raises `UserError` if no embedding is found, if it and the head disagree, or if the configuration calls a
    model tied whose head differs from its embedding.
    """
    embedding, head, bias = (_only(weights, names) for names in (EMBEDDINGS, HEADS, HEAD_BIASES))
    if embedding is None or (head is None and _might_have_another_head(weights, embedding)):
        embedding_name, head_name = _ask_transformers(weights.directory)
        embedding = _only(weights, (f"{embedding_name}.weight",))
        head, bias = (
            _only(weights, (f"{head_name}.{part}",)) if head_name else None for part in ("weight", "bias")
        )
    if embedding is None or len(embedding.shape) != 2:
        raise UserError(
            f"{weights.directory}: the input embedding of this architecture was not found among its weights."
        )
    states = config.get("tie_word_embeddings")
    if head is None:
        if states is False:
            raise UserError(
                f"{weights.directory} has no head, but its {CONFIG} says that it is not tied; copy it again."
            )
        return VocabularyTensors(embedding, None, bias)
    if head.shape[0] != embedding.shape[0]:
        raise UserError(
            f"{weights.directory}: the embedding has {embedding.rows:,} rows, the head {head.rows:,}; "
            "they must agree."
        )
    if head.shape == embedding.shape and states is not False and same_bytes(embedding, head):
        return VocabularyTensors(embedding, None, bias, (head.name,))
    if states is True:
        raise UserError(
            f"{weights.directory / CONFIG} says that it is tied, but {head.name} is not {embedding.name}; "
            "set tie_word_embeddings to the truth first."
        )
    return VocabularyTensors(embedding, head, bias)


def _only(weights: Weights, endings: tuple[str, ...]) -> Tensor | None:
    """The one tensor whose name is, or ends after a dot in, one of `endings`; the earliest ending that fits
    wins.
    """
    for ending in endings:
        found = [name for name in weights.tensors if name == ending or name.endswith("." + ending)]
        if len(found) > 1:
            raise UserError(
                f"{weights.directory} has {found[0]} as well as {found[1]}: it is no causal language model."
            )
        if found:
            return weights.tensors[found[0]]
    return None


def _might_have_another_head(weights: Weights, embedding: Tensor) -> bool:
    """Whether a tensor of another name has the shape of the embedding, as an untied head has."""
    return any(
        tensor.shape == embedding.shape
        for tensor in weights.tensors.values()
        if tensor.name != embedding.name
    )


def _ask_transformers(directory: Path) -> tuple[str, str | None]:
    """The names of the embedding and the head of an architecture that is not in the lists above, by building
    it without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(load_config(directory))
    except (ValueError, KeyError, ImportError, OSError) as error:
        raise UserError(
            f"{directory}: transformers knows no causal language model for its {CONFIG}."
        ) from error
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    prefix = f"{model.base_model_prefix}."
    return names[id(embedding)].removeprefix(prefix), names[id(head)] if head is not None else None


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers, bit for bit as float32."""
    return all(
        np.array_equal(a.view(np.uint32), b.view(np.uint32))
        for (_, a), (_, b) in zip(one.blocks(), other.blocks(), strict=True)
    )
