"""`config.json` across versions of transformers.

transformers 5 writes `rope_parameters`, `dtype` and `layer_types`, which transformers 4 skips without a word; 4
writes `rope_theta`, `rope_scaling`, `torch_dtype` and patterns, which 5 reads. `portable` gives the form that both
read with equal numbers; it is what we write. `load_config` is how every command makes transformers' configuration.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from llmforge.console import warn
from llmforge.errors import UserError
from llmforge.weights.absent import not_a_model

CONFIG = "config.json"
MAX_BYTES = 10 << 20
# Fields that say how large something is; the largest models have some 130 layers and a width of 20,000.
SIZE = re.compile(
    r"(?P<layers>num_(hidden_)?layers|n_layers?$|blocks)|size|dim|width|heads?$|experts|_embd|n_inner|d_model"
)
MOST_LAYERS, MOST = 10_000, 1 << 25
TEXT_PARTS = ("text_config", "llm_config")
GEMMA3 = ("gemma3", "gemma3_text")
GPT_NEOX = ("gpt_neox", "gpt_neox_japanese")
PHI3 = ("phi3", "phi4_multimodal")
OLMO = ("olmo", "olmo2")
# transformers 4 reads their rope_scaling and computes without it.
NO_SCALING = ("nemotron",)
# Layers from `max_window_layers` on have the window, and none where `use_sliding_window` is off.
WINDOW_FROM = ("qwen2", "qwen2_moe", "qwen3")
# Every layer but each n-th has the window; n is a field, or fixed (transformers 4 cannot be told otherwise).
WINDOW_BUT_EACH = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4}
FIXED_PATTERN = ("gemma2",)
SLIDING, FULL = "sliding_attention", "full_attention"


class _UnportableError(Exception):
    """Why transformers 4 has no words for a configuration."""


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json` of a model directory."""
    path = directory / CONFIG
    if not path.is_file():
        raise not_a_model(directory)
    try:
        if path.stat().st_size <= MAX_BYTES:
            config = json.loads(path.read_text(encoding="utf-8"), object_hook=_tagged_float)
            if isinstance(config, dict) and isinstance(config.get("model_type", ""), str):
                return config
    except (ValueError, RecursionError):
        pass
    raise UserError(f"{path} is not a JSON object, or its model_type is not a string; copy the model again.")


def _tagged_float(value: dict[str, Any]) -> Any:
    """What transformers 5 writes for numbers that JSON lacks ({"__float__": "Infinity"}), as the number, which both
    versions read.
    """
    return float(value["__float__"]) if list(value) == ["__float__"] else value


def needs_own_code(config: dict[str, Any]) -> bool:
    """Whether `config` is of a model that transformers does not have itself, and whose code lies beside it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return bool(config.get("auto_map")) and config.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def refuse_own_code(directory: Path) -> None:
    """Raises `UserError` for a model that only code which lies beside it can compute."""
    if needs_own_code(read_config(directory)):
        raise UserError(
            f"{directory / CONFIG}: the model comes with custom code (auto_map), which is not run by default: "
            "evaluate, generate, init-model and export run it with --trust-remote-code; train does not support it."
        )


def load_config(directory: Path, trust_remote_code: bool = False) -> Any:
    """transformers' configuration of a model directory, the same numbers whichever version wrote the file.

    Raises `UserError` where this version knows no such model, or cannot represent the configuration. Code of the
    directory (`auto_map`) is run only with `trust_remote_code`.
    """
    return make_config(read_config(directory), directory, trust_remote_code)


def make_config(config: dict[str, Any], directory: Path, trust_remote_code: bool = False) -> Any:
    """The same from `config`, the `config.json` that was read already."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    _check_sizes(config, directory / CONFIG)
    _check_said_twice(config, directory / CONFIG)
    kind = config.get("model_type")
    if needs_own_code(config):
        if not trust_remote_code:
            refuse_own_code(directory)
        try:
            return transformers.AutoConfig.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=trust_remote_code
            )
        except Exception as error:  # whatever that code raises
            raise UserError(f"{directory / CONFIG}: {' '.join(str(error).split())[:300]}") from error
    if kind not in CONFIG_MAPPING:
        raise UserError(
            f"{directory / CONFIG}: transformers {transformers.__version__} does not know the model_type {kind!r}; "
            "a newer version may."
        )
    try:
        if int(transformers.__version__.split(".")[0]) < 5:
            config = _for_version_4(config, CONFIG_MAPPING[kind])
        else:
            config = _for_version_5(config)
        made = CONFIG_MAPPING[kind].from_dict(config)
    except _UnportableError as problem:
        raise UserError(
            f"{directory / CONFIG}: {problem}, which transformers {transformers.__version__} cannot represent; "
            "use transformers 5."
        ) from problem
    except Exception as error:  # wrong types and sizes: what is raised depends on the class
        raise UserError(f"{directory / CONFIG}: {' '.join(str(error).split())[:300]}") from error
    made._name_or_path = str(directory)
    return made


def _check_sizes(config: dict[str, Any], path: Path) -> None:
    """Refuses sizes that no model has, before something is made of them that takes hours and all memory."""
    for key, value in config.items():
        if isinstance(value, dict):
            _check_sizes(value, path)
        elif isinstance(value, int) and (found := SIZE.search(key)):
            most = MOST_LAYERS if found["layers"] else MOST
            if not -most <= value <= most:
                raise UserError(f"{path}: {key} is {value:,}, which no model has; copy the file again.")


def _check_said_twice(config: dict[str, Any], path: Path) -> None:
    """Refuses fields that contradict each other: versions of transformers drop one or the other, or fail."""
    for part in TEXT_PARTS:
        if isinstance(config.get(part), dict):
            _check_said_twice(config[part], path)
    scaling, rope = config.get("rope_scaling"), config.get("rope_parameters")
    if isinstance(scaling, dict) and isinstance(rope, dict) and scaling and rope:
        theta = {key: config[key] for key in ("rope_theta", "partial_rotary_factor") if config.get(key)}
        one, other = ({**theta, **said, "rope_type": _rope_type(said)} for said in (scaling, rope))
        if {**one, "type": None} != {**other, "type": None}:
            raise UserError(
                f"{path}: rope_scaling and rope_parameters differ, and which of them counts depends on the version of "
                "transformers; put all of it into rope_parameters, and remove rope_scaling."
            )
    off = config.get("model_type") in (*WINDOW_FROM, "qwen3_moe") and not config.get("use_sliding_window")
    no_window = off or ("sliding_window" in config and config["sliding_window"] is None)
    if no_window and SLIDING in (config.get("layer_types") or []):
        why = "use_sliding_window is off" if off else "sliding_window is null"
        raise UserError(f"{path}: layer_types has {SLIDING}, but {why}; correct one of them.")


def portable(config: dict[str, Any], name: Path | None = None) -> dict[str, Any]:
    """`config` in the form that transformers 4 and 5 read alike.

    What only transformers 5 can represent stays as it is, with a warning about the model `name` if there is one.
    """
    try:
        return _portable(config)
    except _UnportableError as problem:
        if name:
            warn(f"{name}: {problem}, which transformers 4 cannot represent; load it with transformers 5.")
        return config


def stating_tied(config: dict[str, Any], tied: bool) -> dict[str, Any]:
    """`config` with the tying that it left to the class of the model, whose default versions of transformers may give
    differently; one with parts stays as it is.
    """
    silent = config.get("tie_word_embeddings") is None and not any(part in config for part in TEXT_PARTS)
    return {**config, "tie_word_embeddings": tied} if silent else config


def _explicit_windows(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with the `layer_types` that its fields mean; transformers 5 reads those of Qwen2-MoE otherwise than
    Qwen's own code and transformers 4 do.
    """
    if config.get("model_type") not in WINDOW_FROM or config.get("layer_types"):
        return config
    if not config.get("use_sliding_window") or "num_hidden_layers" not in config:
        return config
    first = config.get("max_window_layers", 28)
    types = [SLIDING if i >= first else FULL for i in range(config["num_hidden_layers"])]
    return {**config, "layer_types": types}


def _for_version_5(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with what transformers 5 overlooks where 4 had it."""
    config = _explicit_windows(config)
    scaling, original = config.get("rope_scaling"), config.get("original_max_position_embeddings")
    if isinstance(scaling, dict) and original and config.get("model_type") in GEMMA3:
        config = {**config, "rope_scaling": {"original_max_position_embeddings": original, **scaling}}
    return config


def _for_version_4(config: dict[str, Any], known: Any) -> dict[str, Any]:
    """`config` as the class `known` of transformers 4 reads it."""
    from inspect import signature

    made = _portable(config)
    if (
        made.get("model_type") in WINDOW_FROM
        and made.get("use_sliding_window")
        and made.get("sliding_window")
    ):
        longest = made.get("max_position_embeddings", 32768)
        if made.get("max_window_layers", 28) > 0 and made["sliding_window"] < longest:
            raise _UnportableError(
                "its window is that of some layers, and sdpa and eager attention give it to all"
            )
    own = signature(known.__init__).parameters
    for part in (made, *(made[key] for key in TEXT_PARTS if isinstance(made.get(key), dict))):
        if part.get("rope_parameters"):
            raise _UnportableError("its rope_parameters differ by layer type")
        # Where the class knows layer types (from 4.53 on) they speak for themselves.
        if part.get("layer_types") and "layer_types" not in own and part is made:
            _check_pattern(part)
    return made


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    made = _with_rope_as_in_version_4(config)
    if "dtype" in made:
        made.setdefault("torch_dtype", made["dtype"])
        del made["dtype"]
    if "head_dim" in made and made["head_dim"] is None:
        del made["head_dim"]  # transformers 4 multiplies by it
    if made.get("per_layer_config"):
        raise _UnportableError("it has per_layer_config")
    if made.get("use_bidirectional_attention"):
        raise _UnportableError("it has use_bidirectional_attention")
    if made.get("model_type") == "gemma" and made.get("hidden_act") == "gelu":
        made["hidden_act"] = (
            "gelu_pytorch_tanh"  # what the released configurations meant, as transformers 5 says
        )
    if made.get("model_type") == "qwen3_moe" and "num_local_experts" in made:
        made["num_experts"] = made.pop("num_local_experts")
    made = _with_window_as_in_version_4(made)
    return {
        key: _portable(part) if key in TEXT_PARTS and isinstance(part, dict) else part
        for key, part in made.items()
    }


def _with_rope_as_in_version_4(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary positions as rope_theta, partial_rotary_factor and rope_scaling (and the names that GPT-NeoX and Gemma 3
    have for them).
    """
    kind = config.get("model_type")
    made = {key: value for key, value in config.items() if key != "rope_parameters"}
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and any(isinstance(value, dict) for value in rope.values()):
        if kind not in GEMMA3:
            return dict(config)  # a model that transformers 4 does not know, or no longer as it was
        local = rope.get(SLIDING) or {}
        if local.get("rope_type", "default") != "default":
            raise _UnportableError("its sliding layers scale their positions")
        if "rope_theta" in local:
            made["rope_local_base_freq"] = local["rope_theta"]
        rope = rope.get(FULL) or {}
    if isinstance(rope, dict) and rope:
        theta, part = (
            ("rotary_emb_base", "rotary_pct") if kind in GPT_NEOX else ("rope_theta", "partial_rotary_factor")
        )
        for key, name in (("rope_theta", theta), ("partial_rotary_factor", part)):
            if rope.get(key) is not None:
                made[name] = rope[key]
        made["rope_scaling"] = {
            k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")
        }
    if isinstance(made.get("rope_scaling"), dict):
        made["rope_scaling"] = _scaling(made, dict(made["rope_scaling"]), kind)
    return made


def _rope_type(rope: dict[str, Any]) -> Any:
    return rope.get("rope_type") or rope.get("type") or "default"


def _scaling(config: dict[str, Any], scaling: dict[str, Any], kind: str | None) -> dict[str, Any] | None:
    """`rope_scaling` that means the same to both; sets fields of `config` that it depends on."""
    how = _rope_type(scaling)
    if how in ("su", "yarn") and kind in PHI3:
        how = "longrope"  # its names before it had that one
    scaling = {"rope_type": how, **{k: v for k, v in scaling.items() if k not in ("rope_type", "type")}}
    original = scaling.get("original_max_position_embeddings")
    if how == "default":
        return None
    if kind in NO_SCALING:
        raise _UnportableError("it scales its positions")
    longest = config.get("max_position_embeddings")
    if how == "longrope":
        original = config.get("original_max_position_embeddings") or original
        if original:  # transformers 4 looks for it beside rope_scaling, 5 inside
            config["original_max_position_embeddings"] = scaling["original_max_position_embeddings"] = (
                original
            )
        if longest and original:
            # transformers 4 has the ratio for a factor, whatever is stated; all that follows from it is this.
            factor = scaling.setdefault("factor", longest / original)
            if scaling.get("attention_factor") is None and factor != longest / original:
                grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
                scaling["attention_factor"] = grown
    if how == "yarn" and original is not None:
        if scaling.get("truncate") is False:
            raise _UnportableError("its yarn scaling does not truncate")
        if original == longest:
            # transformers 4 would compute factor 1 from the two, and has the factor where there is one.
            del scaling["original_max_position_embeddings"]
        elif scaling.get("factor") and longest and scaling["factor"] * original != longest:
            raise _UnportableError(
                f"its yarn factor {scaling['factor']} is not max_position_embeddings ({longest}) over "
                f"original_max_position_embeddings ({original})"
            )
    if kind in OLMO and how in ("linear", "dynamic"):
        return {"type": how, "factor": scaling["factor"]}  # these two fields, or transformers 4 refuses it
    if kind in PHI3:
        if scaling.get("attention_factor") is not None:
            raise _UnportableError("its longrope scaling has its own factor")
        return {"type": how, **{key: scaling[key] for key in ("short_factor", "long_factor")}}
    return scaling


def _with_window_as_in_version_4(config: dict[str, Any]) -> dict[str, Any]:
    """Sliding windows by fields of transformers 4, beside `layer_types`, which stay where they are stated."""
    kind = config.get("model_type")
    if kind in (*WINDOW_FROM, "qwen3_moe") and not config.get("use_sliding_window"):
        # transformers 4 cuts its mask at `sliding_window` all the same.
        return {**config, "sliding_window": None} if "sliding_window" in config else config
    if kind == "qwen3_moe":
        first, layers = config.get("max_window_layers", 28), config.get("num_hidden_layers", 24)
        if first > 0:
            what = "some layers" if first < layers else "no layer"
            raise _UnportableError(f"its window is that of {what} in transformers 4 and of all layers in 5")
    config = _explicit_windows(config)
    types = config.get("layer_types")
    if kind in WINDOW_FROM and types:
        first = next((i for i, type_ in enumerate(types) if type_ == SLIDING), len(types))
        nowhere = {"sliding_window": None} if first == len(types) else {}  # as above
        return {**config, "max_window_layers": first, **nowhere}
    if kind in WINDOW_BUT_EACH and kind not in FIXED_PATTERN and types:
        each = next((i + 1 for i, type_ in enumerate(types) if type_ == FULL), len(types) + 1)
        return {**config, "sliding_window_pattern": each}
    return config


def _check_pattern(config: dict[str, Any]) -> None:
    """Raises unless the pattern fields of `config`, which transformers 4 has, mean its `layer_types`."""
    kind, types = config.get("model_type"), config["layer_types"]
    meant = [FULL] * len(types)
    if kind in WINDOW_FROM:
        meant = [SLIDING if i >= config["max_window_layers"] else FULL for i in range(len(types))]
    elif kind in WINDOW_BUT_EACH:
        each = config.get("sliding_window_pattern", WINDOW_BUT_EACH[kind])
        meant = [SLIDING if (i + 1) % each else FULL for i in range(len(types))]
    elif kind == "llama4_text":
        return  # follows from no_rope_layers in both
    if types != meant:
        raise _UnportableError("its layer_types follow no pattern")
