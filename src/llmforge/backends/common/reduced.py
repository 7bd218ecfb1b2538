"""A configuration made small: few and narrow layers of each kind that it has, for a look at how a class computes.

What decides the way that attention goes (layer types, windows, biases, soft caps, sinks, scales, rotary kinds, the
ratio of heads to key-value heads) stays; widths shrink, and windows to `WINDOW` tokens, so that short documents are
longer than they are.
"""

import re
from typing import Any

LAYERS, WINDOW = 8, 8
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "decoder_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads")
KEY_HEADS = r"(global_)?(num_key_value_heads|num_kv_heads|n_head_kv|kv_n_heads)"
# The first pattern that a field's whole name matches says how large it may be.
SIZES = (
    (r"(sliding|local|attention)_window(_size)?|attention_chunk_size|window_size|block_local_size", WINDOW),
    (r".*vocab_size.*", 128),
    (r"hidden_size|n_embd|d_model|dim|embedding_(size|dim)|word_embed_proj_dim|hidden_dim|lru_width", 64),
    (r"hidden_size_per_layer_input|attention_hidden_size|index_head_dim", 64),
    (r"(num_attention|decoder_attention|num|encoder_attention)_heads|n_heads?|index_n_heads", 4),
    (r"qk_rope_head_dim|qk_nope_head_dim|rotary_dim", 8),
    (r"head_dim|qk_head_dim|kv_channels|attention_head_dim", 16),
    (r"v_head_dim", 12),
    (r"(q|kv|o)_lora_rank", 16),
    (r".*intermediate_size.*|.*ffn_dim|(expert_)?ffn_hidden_size|n_inner|d_ff|.*_hidden_dim", 96),
    (r"(num|n)_(local_|routed_)?experts|moe_num_experts|num_local_experts", 4),
    (
        r"(num_)?(experts_per_tok|experts_per_token|experts_per_topk)|moe_(top_?k|k)|top_k(_experts)?|num_selects",
        2,
    ),
    (r"n_group|topk_group|num_expert_group|n_groups_of_experts", 1),
    (r"(n|num)_shared_experts", 1),
    (r"zero_expert_num|(mamba_)?n_?groups", 2),
    (r"num_kv_shared_layers", 2),
    (r"mamba_d_ssm|mamba_intermediate_size", 128),
    (r"mamba_(n|num)_heads", 16),
    (r"mamba_(d_head|head_dim)", 8),
    (r"mamba_d_state|ssm_state_size|state_size|mamba_chunk_size|chunk_size", 16),
    (r"linear_num_value_heads", 4),
    (r"linear_num_key_heads", 2),
    (r"linear_(key|value)_head_dim", 16),
)


def reduce(config: Any, layers: int = LAYERS, narrow: bool = True) -> Any:
    """A copy of the transformers configuration `config` with at most `layers` layers; as wide where not `narrow`."""
    fields = config.to_dict()
    for name in ("architectures", "quantization_config", "auto_map", "transformers_version", "model_type"):
        fields.pop(name, None)
    for name, value in list(fields.items()):
        if isinstance(value, dict) and hasattr(nested := getattr(config, name), "to_dict"):
            fields[name] = reduce(nested, layers, narrow)
    _fewer_layers(fields, layers)
    if narrow:
        _narrower(fields)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if fields.get(name) is not None:
            fields[name] = 0
    return type(config)(**fields)


def _fewer_layers(fields: dict[str, Any], most: int) -> None:
    """The first layers, and the first of each kind that the lists by layer tell apart."""
    name = next((n for n in LAYER_COUNTS if isinstance(fields.get(n), int)), None)
    if name is None or fields[name] <= most:
        return
    count = fields[name]
    lists = {n: v for n, v in fields.items() if isinstance(v, list) and len(v) == count}
    tables = {n: {int(k): own for k, own in v.items()} for n, v in fields.items() if _by_number(v)}
    kinds = [
        repr([[values[i] for values in lists.values()], [table.get(i) for table in tables.values()]])
        for i in range(count)
    ]
    # The first of each kind, then the second of each, as some share weights with the one before (Zamba).
    chosen = sorted(sorted(range(count), key=lambda i: (kinds[:i].count(kinds[i]), i))[:most])
    fields.update({n: [values[i] for i in chosen] for n, values in lists.items()})
    for n, table in tables.items():
        fields[n] = {chosen.index(i): dict(own) for i, own in table.items() if i in chosen}
    fields.update({n: most for n in LAYER_COUNTS if fields.get(n) == count})
    if isinstance(last := fields.get("max_window_layers"), int):
        fields["max_window_layers"] = most if last >= count else min(last, most // 2)
    for n, values in fields.items():
        indices = re.fullmatch(r".*(layer_ids|layer_indices|_layers|_idxs?|layers_block_type)", n)
        if (
            indices
            and n not in lists
            and isinstance(values, list)
            and all(isinstance(v, int) for v in values)
        ):
            kept = [chosen.index(v) for v in values if v in chosen]
            fields[n] = kept or ([most // 2] if values else [])


def _by_number(value: Any) -> bool:
    """Whether `value` holds fields of single layers, by their numbers."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(str(k).isdigit() and isinstance(own, dict) for k, own in value.items())
    )


def _narrower(fields: dict[str, Any]) -> None:
    if fields.get("head_dim") is not None and fields["head_dim"] == fields.get("qk_rope_head_dim"):
        fields["head_dim"] = 8  # of latent attention: what is rotated
    attended = int(fields.get("attention_hidden_size") or 0) // int(fields.get("hidden_size") or 1)
    heads = next((fields[n] for n in HEADS if isinstance(fields.get(n), int)), None)
    for name, value in list(fields.items()):
        if _by_number(value):
            for own in value.values():  # what some layers have otherwise
                _narrower(own)
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if re.fullmatch(KEY_HEADS, name):
            fields[name] = 4 if value == heads else min(value, 2)
            continue
        size = next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)
        # A window that is switched off stays wide: transformers 4.51's eager masks have it all the same.
        if size is not None and not (name == "sliding_window" and fields.get("use_sliding_window") is False):
            fields[name] = min(value, size)
    width: Any = fields.get("hidden_size")
    if attended:  # Zamba, whose attention sees two inputs side by side
        fields["attention_hidden_size"] = attended * width
        fields["attention_head_dim"] = attended * width // fields["num_attention_heads"]
    # Layers of Mamba 2, whose heads share a width.
    for expand, count, each in (
        ("mamba_expand", "n_mamba_heads", "mamba_headdim"),
        ("expand", "num_heads", "head_dim"),
    ):
        if {expand, count, each} <= fields.keys():
            fields[each] = fields[expand] * width // fields[count]
    for name in ("rope_parameters", "rope_scaling"):
        fields[name] = _shorter_factors(fields.get(name), fields)
        if fields[name] is None:
            del fields[name]


def _shorter_factors(rope: Any, fields: dict[str, Any]) -> Any:
    """Rotary factors by frequency (longrope), as many as the narrow heads have frequencies."""
    if not isinstance(rope, dict):
        return rope
    head = fields.get("head_dim") or 16
    share = rope.get("partial_rotary_factor") or fields.get("partial_rotary_factor") or 1.0
    return {
        name: value[: int(head * share) // 2]
        if name.endswith("_factor") and isinstance(value, list)
        else _shorter_factors(value, fields)
        for name, value in rope.items()
    }
