"""The modules that transformers makes of a configuration: where the layers are, and what the head does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.errors import UserError
from llmforge.weights.architecture import SUPPORTED
from llmforge.weights.config import CONFIG

# Where the base model of a causal language model has its decoder layers.
LAYERS = ("layers", "h", "decoder.layers", "blocks", "language_model.layers")
# How many there are; LongCat-Flash has layers of two attentions each, and counts those first.
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "num_blocks")
# What heads multiply or divide their products by, and bound them with.
SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier")
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


@dataclass(frozen=True)
class Logits:
    """What becomes of the products of hidden states and head: multiplied by `scale`, then `softcap` x tanh(. /
    `softcap`) (Gemma 2, arXiv 2408.00118).
    """

    scale: float = 1.0
    softcap: float | None = None


PLAIN = Logits()


def possible_logits(config: Any) -> list[Logits]:
    """What the head may do with its products, by the fields of transformers' configuration `config`, the plainest first.

    Classes take the same field in different ways (Granite divides by `logits_scaling`, HyperCLOVA X multiplies), so
    which it is has to be compared.
    """
    stated = config.to_dict()
    caps = [None, *(float(v) for name in SOFTCAPS if (v := stated.get(name)))]
    factors = [float(v) for name in SCALES if (v := stated.get(name))]
    scales = dict.fromkeys([1.0, *factors, *(1 / factor for factor in factors)])
    return [Logits(scale, cap) for scale in scales for cap in caps]


def empty_causal(config: Any, directory: Path) -> Any:
    """The causal model of transformers' configuration `config` without weights (on the meta device), after making sure
    that its parts are where training looks for them. A `UserError` about `directory` says what is supported.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            causal = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # of any class, over any configuration
        what = " ".join(str(error).split())[:200]
        raise UserError(
            f"{directory}: transformers cannot build a causal language model from its {CONFIG} ({what}); supported are {SUPPORTED}."
        ) from error
    find_base(causal)
    embedding, head = causal.get_input_embeddings(), causal.get_output_embeddings()
    if causal.base_model is causal or not hasattr(embedding, "weight") or not hasattr(head, "weight"):
        raise UserError(
            f"{directory}: a {config.model_type} model does not consist of an embedding, layers and a head; supported are "
            f"{SUPPORTED}."
        )
    decoder_layers(causal)
    return causal


def find_base(causal: Any) -> None:
    """Makes `causal.base_model` the model below the head; Llama 4's class of text alone names a part that only the
    class with images has.
    """
    if causal.base_model is causal and hasattr(causal, "model"):
        causal.base_model_prefix = "model"


def decoder_layers(causal: Any) -> Any:
    """The list (`ModuleList`) of the decoder layers of a transformers causal model."""
    counts = {getattr(causal.config, name, None) for name in LAYER_COUNTS}
    for path in LAYERS:
        module = causal.base_model
        for name in path.split("."):
            module = getattr(module, name, None)
        if module is not None and len(module) in counts:
            return module
    raise UserError(
        f"a {causal.config.model_type} model has its layers under an unknown name; supported are {SUPPORTED}."
    )
