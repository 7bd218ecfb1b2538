"""What llama.cpp calls the parts and sizes of the models that it knows, and what it cannot represent."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmforge.console import warn
from llmforge.errors import UserError
from llmforge.weights.config import FULL, SLIDING
from llmforge.weights.floats import Float32

Value = int | float | str | bool
GELU = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class Kind:
    """A `model_type` of transformers in llama.cpp.

    `interleaved`: the rows of q and k are in pairs of rotary halves. `shifted`: norms are stored without their 1. `tied`: a
    head of its own is not read. `each`: each n-th layer has no sliding window (0: windows are not computed). `large`: the
    number of layers at which attention is scaled by the width of a head of the hidden size.
    """

    architecture: str
    activation: str = "silu"
    interleaved: bool = False
    shifted: bool = False
    tied: bool = False
    each: int = 0
    large: int = 0
    biases: tuple[str, ...] = ("attn_q", "attn_k", "attn_v")


LLAMA = Kind(
    "llama",
    interleaved=True,
    biases=("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
)
KINDS = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": Kind("qwen2"),
    "qwen3": Kind("qwen3"),
    "gemma": Kind("gemma", GELU, shifted=True, tied=True),
    "gemma2": Kind("gemma2", GELU, shifted=True, tied=True, each=2, large=46),
    "gemma3_text": Kind("gemma3", GELU, shifted=True, each=6, large=62),
    "phi3": Kind("phi3", biases=()),
}
OUTSIDE = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
INSIDE = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Gemma 2 and 3 have four norms in a layer.
FOUR_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def kind_of(config: Mapping[str, Any], place: Path) -> Kind:
    """The kind of a model; `UserError` for one that llama.cpp does not know, or that is not exported to it."""
    name = config.get("model_type")
    if name not in KINDS:
        raise UserError(
            f"{place}: a model of type {name} is not exported to GGUF; --format gguf takes {', '.join(KINDS)}."
        )
    return KINDS[name]


def tensor_name(name: str, kind: Kind, place: Path) -> str | None:
    """llama.cpp's name for the tensor `name` of a checkpoint; None for what is computed and not stored."""
    bare, _, part = name.removeprefix("model.").rpartition(".")
    if part == "inv_freq":
        return None
    if bare in OUTSIDE and part == "weight":
        return f"{OUTSIDE[bare]}.weight"
    words = bare.split(".", 2)
    names = {**INSIDE, **FOUR_NORMS} if kind.each else INSIDE
    if len(words) == 3 and words[0] == "layers" and words[2] in names:
        own = names[words[2]]
        if part == "weight" or (part == "bias" and own in kind.biases):
            return f"blk.{words[1]}.{own}.{part}"
    raise UserError(f"{place}: llama.cpp has no place for the tensor {name} in a {kind.architecture} model.")


def parameters(config: Mapping[str, Any], kind: Kind, place: Path) -> dict[str, Value]:
    """The sizes of a model by the names that follow llama.cpp's for its architecture.

    `config` is complete and in the form of transformers 4 (`weights.config.portable`). Raises `UserError` for what
    llama.cpp would compute otherwise, and warns of windows that it does not have.
    """
    _check(config, kind, place)
    head = head_width(config)
    found: dict[str, Value] = {
        "block_count": int(config["num_hidden_layers"]),
        "context_length": int(config["max_position_embeddings"]),
        "embedding_length": int(config["hidden_size"]),
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": int(config["num_attention_heads"]),
        "attention.head_count_kv": int(config["num_key_value_heads"]),
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": int(head * config.get("partial_rotary_factor", 1)),
        "rope.freq_base": float(config["rope_theta"]),
        **_scaling(config, place),
    }
    if kind.each and config.get("sliding_window"):
        found["attention.sliding_window"] = int(config["sliding_window"])
    if "rope_local_base_freq" in config:
        found["rope.freq_base_swa"] = float(config["rope_local_base_freq"])
    for key, name in (("attn_logit_softcapping", "attn"), ("final_logit_softcapping", "final")):
        if config.get(key):
            found[f"{name}_logit_softcapping"] = float(config[key])
    return found


def head_width(config: Mapping[str, Any]) -> int:
    """Elements of a head of queries and keys."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _check(config: Mapping[str, Any], kind: Kind, place: Path) -> None:
    def refuse(what: str) -> UserError:
        return UserError(f"{place}: {what}, which llama.cpp does not compute for {kind.architecture} models.")

    activation = config.get("hidden_activation") or config.get("hidden_act")
    if activation != kind.activation:
        raise refuse(f"its activation is {activation}")
    if kind.tied and not config.get("tie_word_embeddings", True):
        raise refuse("its head is not tied to its embedding")
    if config.get("partial_rotary_factor", 1) != 1 and kind.architecture != "phi3":
        raise refuse("only a part of each head is rotated")
    layers, types = config["num_hidden_layers"], config.get("layer_types")
    windowed = [SLIDING if config.get("sliding_window") else FULL] * layers
    sliding = [one == SLIDING for one in types or windowed]
    if kind.each:
        if types and sliding != [bool((number + 1) % kind.each) for number in range(layers)]:
            raise refuse(f"its layers have other windows than each but the {kind.each}th")
        width = head_width(config)
        if layers == kind.large:
            width = config["hidden_size"] // config["num_attention_heads"]
        if config.get("query_pre_attn_scalar", width) != width:
            raise refuse(f"query_pre_attn_scalar is {config['query_pre_attn_scalar']}, not {width}")
    elif any(sliding) and (config.get("sliding_window") or 0) < config["max_position_embeddings"]:
        warn(
            f"{place}: its layers see {config['sliding_window']:,} tokens back; llama.cpp computes no such window for "
            f"{kind.architecture} models, so longer texts give other results there."
        )


def _scaling(config: Mapping[str, Any], place: Path) -> dict[str, Value]:
    """How positions are scaled; what goes by frequency is in `extra_tensors`."""
    scaling = config.get("rope_scaling") or {}
    how, kind = scaling.get("rope_type", "default"), config["model_type"]
    known: dict[str, Value] = {}
    if how == "linear":
        known = {"rope.scaling.type": how, "rope.scaling.factor": float(scaling["factor"])}
    elif how == "yarn":
        odd = [
            name for name in ("attention_factor", "mscale", "mscale_all_dim") if scaling.get(name) is not None
        ]
        if odd:
            raise UserError(f"{place}: llama.cpp has no equal of {odd[0]} in rope_scaling.")
        original = scaling.get("original_max_position_embeddings") or config["max_position_embeddings"]
        known = {
            "rope.scaling.type": how,
            "rope.scaling.factor": float(scaling["factor"]),
            "rope.scaling.original_context_length": int(original),
            "rope.scaling.yarn_beta_fast": float(scaling.get("beta_fast") or 32),
            "rope.scaling.yarn_beta_slow": float(scaling.get("beta_slow") or 1),
        }
    elif how == "longrope" and kind == "phi3":
        original, longest = config["original_max_position_embeddings"], config["max_position_embeddings"]
        factor = longest / original
        known = {
            "rope.scaling.type": how,
            "rope.scaling.original_context_length": int(original),
            "rope.scaling.attn_factor": math.sqrt(1 + math.log(factor) / math.log(original))
            if factor > 1
            else 1.0,
        }
    elif how != "default" and not (how == "llama3" and kind in ("llama", "mistral")):
        raise UserError(f"{place}: llama.cpp has no {how} scaling of positions for {kind} models.")
    return known


def extra_tensors(config: Mapping[str, Any]) -> dict[str, Float32]:
    """Tensors that llama.cpp reads where transformers computes: what each rotary frequency is divided by."""
    scaling = config.get("rope_scaling") or {}
    how = scaling.get("rope_type")
    if how == "longrope":
        return {
            f"rope_factors_{name}.weight": np.array(scaling[f"{name}_factor"], np.float32)
            for name in ("long", "short")
        }
    if how == "llama3":
        return {"rope_freqs.weight": _llama3_factors(config, scaling)}
    return {}


def _llama3_factors(config: Mapping[str, Any], scaling: Mapping[str, Any]) -> Float32:
    """Llama 3's scaling: short waves stay, long ones are divided by `factor`, those between by something between."""
    width, factor = head_width(config), scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    waves = 2 * math.pi * config["rope_theta"] ** (np.arange(0, width, 2) / width)
    turns = scaling["original_max_position_embeddings"] / waves  # in the original context
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    factors: Float32 = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return factors
