"""config.json of transformers 4 and 5, read by the other: the same positions and windows, or a refusal."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llmforge.errors import UserError
from llmforge.weights.config import load_config, portable

from . import rotary_probe
from .test_other_transformers import VARIABLE, python  # noqa: F401

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 6,
    "pad_token_id": 0,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
KINDS: dict[str, dict[str, Any]] = {
    **{kind: {} for kind in ("llama", "qwen2", "starcoder2", "olmo", "olmo2", "cohere", "granite")},
    **{kind: {} for kind in ("phi", "phi3", "persimmon", "stablelm", "gpt_neox")},
    **{kind: {"head_dim": 8} for kind in ("qwen3", "gemma", "glm", "glm4", "nemotron", "helium")},
    **{
        kind: {"head_dim": 8, "sliding_window": 16}
        for kind in ("gemma2", "gemma3_text", "cohere2", "mistral")
    },
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 1},
    "mixtral": {"num_local_experts": 2, "head_dim": 8},
    "granitemoe": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 8},
    "qwen3_moe": {**EXPERTS, "head_dim": 8},
    "olmoe": {"num_experts": 2, "num_experts_per_tok": 1},
    "deepseek_v3": {
        "num_key_value_heads": 2,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "n_group": 1,
        "topk_group": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "first_k_dense_replace": 1,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    },
}
PARTIAL = {"phi", "persimmon", "stablelm", "glm", "glm4", "nemotron", "gpt_neox"}
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.1, 2.2, 2.3]}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "yarn without its length": {"rope_type": "yarn", "factor": 4.0},
    "yarn that is longer": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    "yarn that is shorter": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {**FACTORS, "original_max_position_embeddings": 64},
    "longrope with a factor": {
        "rope_type": "longrope",
        "factor": 8.0,
        **FACTORS,
        "original_max_position_embeddings": 64,
    },
}
SCALED = ("llama", "phi3", "gemma3_text", "olmo2", "nemotron", "gpt_neox", "deepseek_v3")
PATTERNS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "qwen2 from layer 2": ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}, True),
    "qwen3 everywhere": ("qwen3", {"use_sliding_window": True, "max_window_layers": 0}, True),
    "qwen2 beyond": ("qwen2", {"use_sliding_window": True, "max_window_layers": 6}, True),
    "qwen2 nowhere": ("qwen2", {"use_sliding_window": False, "sliding_window": 16}, True),
    "qwen2_moe from layer 2": ("qwen2_moe", {"use_sliding_window": True, "max_window_layers": 2}, True),
    "qwen3_moe from layer 2": ("qwen3_moe", {"use_sliding_window": True, "max_window_layers": 2}, False),
    "qwen3_moe everywhere": ("qwen3_moe", {"use_sliding_window": True, "max_window_layers": 0}, True),
    "gemma2": ("gemma2", {}, True),
    "gemma3 each third": ("gemma3_text", {"sliding_window_pattern": 3}, True),
    "cohere2 each second": ("cohere2", {"sliding_window_pattern": 2}, True),
    "mistral": ("mistral", {}, True),
}
# What transformers 4.51.3 cannot represent, by a part of the name of the case.
REFUSED = {
    "yarn that is shorter": "is not max_position_embeddings",
    "nemotron-": "scales its positions",
    "5-phi3-longrope with a factor": "its own factor",
    "5-olmo2-": "`rope_scaling`",
    "qwen2 from layer 2": "its window is that of some layers, and sdpa and eager attention give it to all",
    "4-qwen2_moe from": "its window is that of some layers, and sdpa and eager attention give it to all",
    "qwen3_moe from layer 2": "its window is that of some layers in transformers 4 and of all layers in 5",
    "layer types of no pattern": "its layer_types follow no pattern",
    "5-qwen2_moe from": "its layer_types follow no pattern",  # as transformers 5 makes them
}


def cases(version: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """(model type, settings) by name, in the words of transformers `version`."""
    made = {}
    for kind, settings in KINDS.items():
        ways: dict[str, dict[str, Any]] = {"theta": {}}
        if kind in SCALED:
            ways |= {name: {"rope_type": name, **scaling} for name, scaling in SCALINGS.items()}
        for way, scaling in ways.items():
            if kind == "phi3" and way not in ("theta", "longrope", "longrope with a factor"):
                continue
            if version == 4 and kind == "olmo2" and way not in ("theta", "linear", "dynamic"):
                continue
            if version == 4 and kind == "phi3" and way == "longrope with a factor":
                continue
            part = 1.0 if "longrope" in way else 0.5
            words = in_words_of_5 if version == 5 else in_words_of_4
            layers = {"num_hidden_layers": 6 if kind == "gemma3_text" else 2}
            made[f"{version}-{kind}-{way}"] = (
                kind,
                {**SIZES, **layers, **settings, **words(kind, scaling, part)},
            )
    for name, (kind, settings, _) in PATTERNS.items():
        made[f"{version}-{name}"] = (kind, {**SIZES, **KINDS[kind], "sliding_window": 16, **settings})
    return made


def in_words_of_5(kind: str, scaling: dict[str, Any], part: float) -> dict[str, Any]:
    rope = {"rope_theta": 12345.0, "rope_type": "default", **scaling}
    if kind in PARTIAL:
        rope["partial_rotary_factor"] = part
    local = {"rope_type": "default", "rope_theta": 777.0}
    return {
        "rope_parameters": {"full_attention": rope, "sliding_attention": local}
        if kind == "gemma3_text"
        else rope
    }


def in_words_of_4(kind: str, scaling: dict[str, Any], part: float) -> dict[str, Any]:
    made: dict[str, Any] = {"rope_theta": 12345.0}
    if kind == "gemma3_text":
        made["rope_local_base_freq"] = 777.0
    if kind in PARTIAL:
        made["partial_rotary_factor"] = part
    if kind == "gpt_neox":
        made = {"rotary_emb_base": 12345.0, "rotary_pct": part}
    if scaling:
        made["rope_scaling"] = dict(scaling)
        if kind == "olmo2":
            made["rope_scaling"] = {"type": scaling["rope_type"], "factor": scaling["factor"]}
        if scaling["rope_type"] == "longrope":
            made["original_max_position_embeddings"] = made["rope_scaling"].pop(
                "original_max_position_embeddings"
            )
        if kind == "phi3":
            made["rope_scaling"] = {"type": "longrope", **FACTORS}
    return made


@pytest.mark.slow
def test_both_versions_read_both_versions_alike(python: str, tmp_path: Path) -> None:  # noqa: F811
    of_4, of_5 = cases(4), cases(5)
    for name, (kind, settings) in of_5.items():
        rotary_probe.make(str(tmp_path / name), kind, settings)
    odd = json.loads((tmp_path / "5-gemma2" / "config.json").read_text())
    odd["layer_types"] = ["sliding_attention"] * 5 + ["full_attention"]
    (tmp_path / "5-layer types of no pattern").mkdir()
    (tmp_path / "5-layer types of no pattern" / "config.json").write_text(json.dumps(odd))
    names = [*of_4, *of_5, "5-layer types of no pattern"]
    refused = {name for name in names if any(part in name for part in REFUSED)}
    refused -= {"5-olmo2-theta", "5-olmo2-linear", "5-olmo2-dynamic", "4-nemotron-theta", "5-nemotron-theta"}
    written = {name: str(tmp_path / "written" / name) for name in names if name not in refused}
    wanted = {
        "make": [[str(tmp_path / name), *case] for name, case in of_4.items()],
        "portable": [[str(tmp_path / name), path] for name, path in written.items()],
        "llmforge": [str(tmp_path / name) for name in names],
        "plain": list(written.values()),
    }
    environment = {**os.environ, "PYTHONPATH": str(Path(rotary_probe.__file__).parents[2] / "src")}
    done = subprocess.run(
        [python, rotary_probe.__file__],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    in_4 = json.loads(done.stdout.strip().splitlines()[-1])
    in_5 = rotary_probe.run({"llmforge": wanted["llmforge"], "plain": wanted["plain"]})
    for name in refused:
        said = in_4["llmforge"][str(tmp_path / name)]
        assert isinstance(said, str), name
        assert any(part in name and reason in said for part, reason in REFUSED.items()), (name, said)
    for name, path in written.items():
        read = in_5["llmforge"][str(tmp_path / name)]
        assert not isinstance(read, str), (name, read)
        for result in (in_4["llmforge"][str(tmp_path / name)], in_4["plain"][path], in_5["plain"][path]):
            assert result == json.loads(json.dumps(read)), name
    assert in_5["llmforge"][str(tmp_path / "5-llama-theta")][0][0][2] == pytest.approx(12345**-0.25, rel=1e-4)


def test_a_model_type_of_another_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama-of-tomorrow"}')
    with pytest.raises(UserError, match=r"does not know the model_type 'llama-of-tomorrow'"):
        load_config(tmp_path)


def test_what_is_portable_stays_as_it_is(tmp_path: Path) -> None:
    for kind, settings in cases(5).values():
        rotary_probe.make(str(tmp_path), kind, settings)
        once = portable(json.loads((tmp_path / "config.json").read_text()))
        assert portable(once) == once


def test_the_experts_of_qwen3_moe_have_the_name_of_their_first_version() -> None:
    assert portable({"model_type": "qwen3_moe", "num_local_experts": 4})["num_experts"] == 4


def test_a_window_that_no_layer_has_is_written_as_none() -> None:
    qwen2 = {"model_type": "qwen2", "num_hidden_layers": 2, "sliding_window": 16, "use_sliding_window": True}
    assert portable({**qwen2, "layer_types": ["full_attention"] * 2})["sliding_window"] is None
    assert portable({**qwen2, "max_window_layers": 2})["sliding_window"] is None
    assert portable({**qwen2, "max_window_layers": 1})["sliding_window"] == 16


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling and rope_parameters differ"),
        (
            {"rope_scaling": {"rope_type": "default"}},
            "rope_scaling and rope_parameters differ",
        ),  # no rope_theta
        ({"rope_scaling": {"type": "default"}, "rope_theta": 1e6}, None),
        ({"rope_scaling": None}, None),
        ({"use_sliding_window": False}, "layer_types has sliding_attention, but use_sliding_window is off"),
        ({"sliding_window": None}, "layer_types has sliding_attention, but sliding_window is null"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(
    fields: dict[str, Any], sentence: str | None, tmp_path: Path
) -> None:
    windows = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}
    rotary_probe.make(str(tmp_path), "qwen2", {**SIZES, **windows, "rope_theta": 1e6})
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6}
    (tmp_path / "config.json").write_text(json.dumps({**config, **fields}))
    if sentence is None:
        assert load_config(tmp_path).rope_parameters["rope_theta"] == 1e6
    else:
        with pytest.raises(UserError, match=sentence):
            load_config(tmp_path)
