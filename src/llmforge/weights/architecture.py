"""What architectures call things: embeddings and heads, lists of layers, sizes in a configuration, what a head does.

The one place that knows names of this or that architecture. transformers' own `attribute_map` gives the common ones
(hidden_size, num_hidden_layers, num_attention_heads, max_position_embeddings) for every configuration it has.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmforge.errors import UserError
from llmforge.weights.config import CONFIG, TEXT_PARTS, load_config, needs_own_code
from llmforge.weights.read import Weights
from llmforge.weights.tensor import Tensor

# The last parts of the names that transformers' causal language models use. A checkpoint may have been saved
# with or without the prefix of its base model ("model.", "transformer.", "gpt_neox.").
EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "embeddings.weight",
    "embed.weight",
)
HEADS = ("lm_head.weight", "embed_out.weight", "head.weight")
HEAD_BIASES = ("lm_head.bias", "embed_out.bias")

# Positions come from a table, learned or computed, which ends.
POSITION_TABLES = {"gpt2", "gpt_bigcode", "gpt_neo", "gptj", "codegen", "opt", "biogpt", "openai-gpt", "ctrl"}
# Rotary positions whose frequencies depend on the longest document of a micro-batch once it is longer than this field.
LENGTH_DEPENDENT = {"dynamic": "max_position_embeddings", "longrope": "original_max_position_embeddings"}
# The width inside an MLP, and how many experts a token goes to, in the order in which they are looked for.
MLP_WIDTHS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "dff")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "moe_k", "moe_topk", "moe_top_k")
# Not causal by themselves, or with an encoder.
ENCODERS = {
    "bart",
    "bert",
    "bert-generation",
    "big_bird",
    "bigbird_pegasus",
    "blenderbot",
    "blenderbot-small",
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
    "fuyu",
    "git",
    "marian",
    "mbart",
    "megatron-bert",
    "moshi",
    "musicgen",
    "musicgen_melody",
    "mvp",
    "pegasus",
    "plbart",
    "prophetnet",
    "reformer",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roc_bert",
    "roformer",
    "t5",
    "mt5",
    "trocr",
    "whisper",
    "xlm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xlnet",
    "xmod",
}
# What the comparison before a training finds of others, so that it is said before anything is prepared.
OTHERWISE = {
    "deepseek_v4": "a deepseek_v4 model routes tokens to experts by a table of ids, which new tokens would lack",
    "dory": "a dory model runs some of its layers several times, which has not been compared",
    **dict.fromkeys(
        ("inkling2_text", "inkling2_loop_text"),
        "the input embedding of an Inkling 2 model has an unknown name",
    ),
    "inkling_text": "the head of an inkling_text model is more than a matrix, a scale and a soft cap",
    "modernbert-decoder": "the head of a modernbert-decoder model has layers of its own",
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"),
        "an assistant of Gemma 4 drafts from the hidden states of another model",
    ),
}
OTHER_PARTS = ("vision_config", "audio_config", "encoder", "speech_config", "vq_config")
SUPPORTED = (
    "LLaMA, Mistral, Mixtral, Qwen2, Qwen3, Qwen3-MoE, Gemma 1 to 3 (text), Phi-3, Phi, SmolLM3, OLMo, GLM-4, Granite, "
    "Cohere, StarCoder2, StableLM, Falcon (without ALiBi), GPT-2, GPT-J, GPT-NeoX, OPT, Bloom, DeepSeek-V3, GPT-OSS and similar models "
    "(docs/models.md)"
)


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
        return {tensor.name: role for role, tensor in self.by_role().items()}

    def by_role(self) -> dict[str, Tensor]:
        """The tensors that there are, by what they are."""
        roles = {"embedding": self.embedding, "head": self.head, "head_bias": self.head_bias}
        return {role: tensor for role, tensor in roles.items() if tensor is not None}


def with_vocabulary_size(config: dict[str, Any], size: int) -> dict[str, Any]:
    """A copy of `config` that states `size` rows, in the text part of a configuration that has parts."""
    parts = {
        key: with_vocabulary_size(part, size) for key, part in config.items() if _is_text_part(key, part)
    }
    top = {"vocab_size": size} if "vocab_size" in config or not parts else {}
    return {**config, **parts, **top}


def _is_text_part(key: str, part: object) -> bool:
    return key in TEXT_PARTS and isinstance(part, dict)


def find_vocabulary_tensors(
    weights: Weights, config: dict[str, Any], trust_remote_code: bool = False
) -> VocabularyTensors:
    """The embedding and the head among `weights`.

    A model is tied when its configuration says so, or its class where that is silent (Gemma's is, LLaMA's is not);
    one of unknown class when it stores no head of its own, or one that is the embedding again, byte for byte. Raises `UserError` if no embedding is found, if it and the head disagree, or if the configuration calls a
    model tied whose head differs from its embedding.
    """
    embedding, head, bias = (_only(weights, names) for names in (EMBEDDINGS, HEADS, HEAD_BIASES))
    if embedding is None or (head is None and _might_have_another_head(weights, embedding)):
        embedding_name, head_name = _ask_transformers(weights.directory, trust_remote_code)
        embedding = _only(weights, (f"{embedding_name}.weight",))
        head, bias = (
            _only(weights, (f"{head_name}.{part}",)) if head_name else None for part in ("weight", "bias")
        )
    if embedding is None or len(embedding.shape) != 2:
        raise UserError(
            f"{weights.directory}: the input embedding of this architecture was not found among its weights; supported are {SUPPORTED}."
        )
    states = _says_tied(weights.directory, config)
    if head is None:
        if states is False:
            raise UserError(
                f"{weights.directory} has no head, but its {CONFIG} says that it is not tied; copy it again, or set "
                "tie_word_embeddings to true if it was trained with tied weights."
            )
        return VocabularyTensors(embedding, None, bias)
    if head.shape[0] != embedding.shape[0]:
        raise UserError(
            f"{weights.directory}: the embedding has {embedding.rows:,} rows, the head {head.rows:,}; "
            "they must be equal. Copy the model again."
        )
    if head.shape == embedding.shape and states is not False and same_bytes(embedding, head):
        return VocabularyTensors(embedding, None, bias, (head.name,))
    if states is True:
        raise _two_heads(embedding, head)
    return VocabularyTensors(embedding, head, bias)


def check_tied(weights: Weights, config: dict[str, Any]) -> None:
    """Raises `UserError` where `config` calls a model tied that stores another head than its embedding."""
    if _says_tied(weights.directory, config) and (head := _only(weights, HEADS)):
        embedding = _only(weights, EMBEDDINGS)
        if embedding and not (head.shape == embedding.shape and same_bytes(embedding, head)):
            raise _two_heads(embedding, head)


def _two_heads(embedding: Tensor, head: Tensor) -> UserError:
    return UserError(
        f"{embedding.path.parent / CONFIG} says that the model is tied, but {head.name} differs from {embedding.name}: "
        "transformers 4 uses the embedding for both, 5 uses both; correct tie_word_embeddings first."
    )


def _says_tied(directory: Path, config: dict[str, Any]) -> bool | None:
    """Whether the head of the model is its embedding, as transformers resolves it; None where nobody can say."""
    if isinstance(stated := config.get("tie_word_embeddings"), bool):
        return stated
    if needs_own_code(config):
        return None
    tied = getattr(load_config(directory).get_text_config(), "tie_word_embeddings", None)
    return tied if isinstance(tied, bool) else None


def _only(weights: Weights, endings: tuple[str, ...]) -> Tensor | None:
    """The one tensor whose name is, or ends after a dot in, one of `endings`; the earliest ending that fits
    wins.
    """
    for ending in endings:
        found = [name for name in weights.tensors if name == ending or name.endswith("." + ending)]
        if len(found) > 1:
            raise UserError(
                f"{weights.directory} has {found[0]} as well as {found[1]}: it is not a causal language model."
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


def _ask_transformers(directory: Path, trust_remote_code: bool) -> tuple[str, str | None]:
    """The names of the embedding and the head of an architecture that is not in the lists above, by building
    it without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    made = load_config(directory, trust_remote_code)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(made, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, ImportError, OSError) as error:
        raise UserError(
            f"{directory}: transformers has no causal language model for its {CONFIG}."
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


def check_supported(config: dict[str, Any], directory: Path) -> None:
    """Raises `UserError` unless `config`, as in the file, is that of a causal language model of text alone."""
    kind = config.get("model_type")
    if kind == "falcon" and config.get("alibi"):
        raise UserError(
            f"{directory}: transformers adds ALiBi of Falcon twice in its eager attention and once in sdpa, so "
            f"that it cannot be compared; supported are {SUPPORTED}."
        )
    if kind in OTHERWISE:
        raise UserError(f"{directory}: {OTHERWISE[kind]}; supported are {SUPPORTED}.")
    if kind == "gemma4_text" and config.get("hidden_size_per_layer_input"):
        raise UserError(
            f"{directory}: a gemma4_text model with hidden_size_per_layer_input has a second embedding of every token, "
            f"for its layers, which new tokens would lack; supported are {SUPPORTED}."
        )
    others = [name for name in OTHER_PARTS if config.get(name)]
    parts = [name for name in TEXT_PARTS if _is_text_part(name, config.get(name))]
    if others:
        what = f"has other parts than its text model ({', '.join(others)})"
    elif kind in ENCODERS or config.get("is_encoder_decoder"):
        what = "is not a decoder-only model"
    elif parts:
        what = f"has its text model in a part of its configuration ({parts[0]})"
    else:
        return
    raise UserError(f"{directory}: a {kind} model {what}; supported are {SUPPORTED}.")


def check_one_table(config: dict[str, Any], directory: Path) -> None:
    """Raises `UserError` where, by `config` as in the file, tokens have rows in another table than embedding and head."""
    kind = config.get("model_type")
    if kind == "gemma3n_text" or config.get("vocab_size_per_layer_input"):
        raise UserError(
            f"{directory}: a {kind} model has a second embedding of every token, for its layers, whose rows llmforge neither "
            "adds nor removes; give another model, or prune the tokenizer alone (prune-vocabulary --tokenizer)."
        )


def check_length(config: Any, directory: Path, length: int) -> None:
    """Raises `UserError` where documents of `length` tokens are longer than the positions of the model, by
    transformers' configuration `config`.
    """
    if config.model_type in POSITION_TABLES:
        limit = config.max_position_embeddings
        if length > limit:
            raise UserError(
                f"--data or --eval-data has rows of {length:,} tokens, and {directory} has positions for {limit:,}; "
                f"prepare the data with --max-length {limit} or less."
            )
    ropes = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for rope in (ropes, *(value for value in ropes.values() if isinstance(value, dict))):
        how = str(rope.get("rope_type") or rope.get("type"))
        limit = rope.get(field := LENGTH_DEPENDENT.get(how, "")) or getattr(
            config, field or "model_type", None
        )
        if field and isinstance(limit, int) and length > limit:
            raise UserError(
                f"--data or --eval-data has rows of {length:,} tokens, and from {limit:,} on the {how} positions of {directory} "
                "depend on the longest document of a micro-batch, so that documents packed with it would change; "
                f"prepare the data with --max-length {limit} or less."
            )


def mlp_width(config: Any) -> int:
    """The width inside the MLP that a token goes through, over all its experts; the widest of all layers."""
    width = next((v for name in MLP_WIDTHS if (v := _widest(config, name))), 4 * config.hidden_size)
    if active := experts_per_token(config):
        width = _widest(config, "moe_intermediate_size") or width
        return width * (active + _widest(config, "n_shared_experts"))
    return width


def experts_per_token(config: Any) -> int:
    """0 where the model has no experts."""
    return next((v for name in EXPERTS_PER_TOKEN if (v := _widest(config, name))), 0)


def attention_heads(config: Any) -> int:
    """0 where the model has no attention (Mamba)."""
    return _widest(config, "num_attention_heads")


def head_widths(config: Any) -> tuple[int, int]:
    """The widths of a head's queries and keys, and of its values (multi-head latent attention has two, arXiv
    2405.04434).
    """
    rotary, rest = _widest(config, "qk_rope_head_dim"), _widest(config, "qk_nope_head_dim")
    if rotary and rest:
        return rest + rotary, _widest(config, "v_head_dim")
    width = _widest(config, "head_dim") or config.hidden_size // max(attention_heads(config), 1)
    return width, width


def positions(config: Any) -> int:
    """How many positions the model was made for, in a table or not; 0 where it states none."""
    return _widest(config.get_text_config(), "max_position_embeddings")


def _widest(config: Any, name: str) -> int:
    """The largest value of a field that may differ by layer (Gemma 3n, Gemma 4); 0 where there is none."""
    try:
        found = getattr(config, name, None)
    except RuntimeError:  # transformers' own, of a field that differs
        found = [getattr(layer, name, None) for layer in config.per_layer_config]
    return max((int(v) for v in (found if isinstance(found, list | tuple) else [found]) if v), default=0)
