"""Tiny models of many kinds of attention, and how far their packed rows are from transformers' own values.

Run as a script, by an interpreter whose transformers may have another version, it tries all of them.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from llmforge.backends.common import attention_check
from llmforge.backends.common.attention import NAMES
from llmforge.backends.common.documents import Documents
from llmforge.backends.common.model import load_model
from llmforge.errors import UserError
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.modules import find_base

WINDOW, LONGEST = 8, 40
# Shorter than the window, as long, one longer, much longer, and one token.
SIZES = (3, WINDOW, WINDOW + 1, LONGEST, 1)
BASE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "rope_theta": 5e5,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
# The names that transformers 4 has for what some cases ask for.
OLDER: dict[str, dict[str, Any]] = {
    "gemma 3": {"sliding_window_pattern": 2},  # which transformers 4.51 has instead of `layer_types`
    "llama, yarn": {
        "max_position_embeddings": 256,
        "rope_scaling": {name: value for name, value in YARN.items() if name != "rope_theta"},
        "rope_theta": YARN["rope_theta"],
    },
    "llama 3": {
        "rope_scaling": {name: value for name, value in LLAMA3.items() if name != "rope_theta"},
        "rope_theta": LLAMA3["rope_theta"],
    },
    "cohere 2": {"sliding_window_pattern": 2},
    # 4.51.3 has a window that is switched off all the same; in real models it is longer than any row.
    "qwen2, switched off": {"sliding_window": 100},
}
PACKED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, wide heads": ("Llama", {"head_dim": 32}),
    "llama, yarn": ("Llama", {"rope_parameters": YARN}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3}),
    "mistral": ("Mistral", {"sliding_window": WINDOW}),
    "mistral, one less than the longest document": ("Mistral", {"sliding_window": LONGEST - 1}),
    "mistral, as long as the longest document": ("Mistral", {"sliding_window": LONGEST}),
    "mistral, longer than the row": ("Mistral", {"sliding_window": 100}),
    "mixtral": ("Mixtral", {"sliding_window": WINDOW, "num_local_experts": 4}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen2, all layers": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0},
    ),
    "qwen2, no layer": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    ),
    "qwen2, switched off": (
        "Qwen2",
        {"use_sliding_window": False, "sliding_window": WINDOW, "max_window_layers": 0},
    ),
    "qwen3": (
        "Qwen3",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "phi-3": ("Phi3", {"sliding_window": WINDOW}),
    "gemma 2": (
        "Gemma2",
        {"head_dim": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": None, **MIXED},
    ),
    "gemma 3": ("Gemma3Text", {"head_dim": 16, **MIXED}),
    "gpt-oss": ("GptOss", {"head_dim": 16, "num_local_experts": 4, **MIXED}),
    "starcoder2": ("Starcoder2", {"sliding_window": WINDOW}),
    "exaone 4": ("Exaone4", MIXED),
    "cohere 2": ("Cohere2", {"logit_scale": 1.0, **MIXED}),
    "olmo 3": ("Olmo3", MIXED),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "granite": ("Granite", {"attention_multiplier": 0.5}),
    "deepseek v3": (
        "DeepseekV3",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 12,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
        },
    ),
}
ONE_BY_ONE: dict[str, tuple[str, dict[str, Any]]] = {
    "stablelm": ("StableLm", {}),
    "falcon": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt-neo": (
        "GPTNeo",
        {
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
        },
    ),
    "bloom": ("Bloom", {}),
    "mpt": ("Mpt", {"d_model": 64, "n_heads": 4, "n_layers": 2}),
    "gpt-j": ("GPTJ", {"rotary_dim": 8}),
    "opt": ("OPT", {"word_embed_proj_dim": 64, "ffn_dim": 96}),
}
STATE: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", {}),
    "lfm2": ("Lfm2", {"layer_types": ["conv", "full_attention"]}),
    "qwen3-next": (
        "Qwen3Next",
        {
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
}


def saved(directory: Path, kind: str, fields: dict[str, Any]) -> Any:
    """A model whose attention matters, as a directory; in float32 with transformers' `eager` attention."""
    import transformers

    config = getattr(transformers, f"{kind}Config")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        config(**{**BASE, **fields}), attn_implementation="eager"
    )
    with torch.no_grad():
        attention_check._strengthen(model)
    model.save_pretrained(directory)
    return model.eval()


def largest_difference(ours: Any, reference: Any, sizes: tuple[int, ...]) -> float:
    """Of the hidden states of a row of documents, by the largest one."""
    ids = torch.randint(1, 100, (1, sum(sizes)))
    with torch.no_grad():
        got, expected = rows_of(ours, reference, ids, sizes)
    return float((got - expected).abs().max() / expected.abs().max())


def rows_of(
    ours: Any, reference: Any, ids: torch.Tensor, sizes: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, length, width) twice: of the row `ids` as training computes it, and of each document by transformers alone."""
    positions = torch.cat([torch.arange(n) for n in sizes])[None]
    documents = Documents((sizes,), ids.device)
    find_base(reference)
    got = ours.base_model(input_ids=ids, position_ids=positions, use_cache=False, documents=documents)
    parts = [
        reference.base_model(input_ids=part, use_cache=False).last_hidden_state
        for part in ids.split(list(sizes), 1)
    ]
    return got.last_hidden_state, torch.cat(parts, dim=1)


def main() -> None:
    """Tries every case that this transformers knows, and prints what becomes of each."""
    import transformers

    from llmforge.backends.common.packing import way_of

    found: dict[str, Any] = {}
    for name, (kind, fields) in {**PACKED, **ONE_BY_ONE, **STATE}.items():
        if not hasattr(transformers, f"{kind}Config"):
            continue
        fields = {**fields, **OLDER.get(name, {})}
        with TemporaryDirectory() as directory:
            reference = saved(Path(directory), kind, fields)
            try:
                ours = load_model(ModelDirectory(Path(directory)), NAMES["sdpa"]).eval()
                sizes = (LONGEST,) if way_of(ours).state else SIZES
                found[name] = largest_difference(ours, reference, sizes)
            except UserError as error:
                found[name] = str(error)
    print(json.dumps({"transformers": transformers.__version__, "cases": found}))


if __name__ == "__main__":
    main()
