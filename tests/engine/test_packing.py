"""Packed rows of the models people use: transformers' own values of each document, or a refusal in a sentence."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llmforge.engine import attention, attention_check, packing
from llmforge.engine.attention import NAMES, Documents, Terms, by_flex, by_sdpa
from llmforge.engine.build import build_engine
from llmforge.engine.colossal import rules
from llmforge.engine.model import load_model
from llmforge.engine.protocol import World
from llmforge.errors import UserError
from llmforge.model import Vocabulary
from llmforge.train.config import TrainConfig

CPU = torch.device("cpu")
WINDOW = 8
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
PACKED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, wide heads": ("Llama", {"head_dim": 32}),
    "llama, yarn": ("Llama", {"rope_parameters": YARN}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3}),
    "mistral": ("Mistral", {"sliding_window": WINDOW}),
    "mixtral": ("Mixtral", {"sliding_window": WINDOW, "num_local_experts": 4}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
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

    config = getattr(transformers, f"{kind}Config", None)
    if config is None:
        pytest.skip(f"this transformers has no {kind}")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        config(**{**BASE, **fields}), attn_implementation="eager"
    )
    with torch.no_grad():
        attention_check._strengthen(model)
    model.save_pretrained(directory)
    return model.eval()


def largest_difference(ours: Any, reference: Any, sizes: tuple[int, ...]) -> float:
    ids = torch.randint(1, 100, (1, sum(sizes)))
    positions = torch.cat([torch.arange(n) for n in sizes])[None]
    with torch.no_grad():
        got = ours.base_model(
            input_ids=ids, position_ids=positions, use_cache=False, documents=Documents((sizes,), CPU)
        ).last_hidden_state
        parts = [
            reference.base_model(input_ids=part, use_cache=False).last_hidden_state
            for part in ids.split(list(sizes), 1)
        ]
    expected = torch.cat(parts, dim=1)
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", PACKED)
def test_documents_in_a_row_have_the_values_of_transformers(name: str, tmp_path: Path) -> None:
    reference = saved(tmp_path, *PACKED[name])
    ours = load_model(tmp_path, NAMES["sdpa"]).eval()
    assert packing.way_of(ours).packed, packing.way_of(ours)
    # Shorter than the window, as long, one longer, and much longer.
    assert largest_difference(ours, reference, (3, WINDOW, WINDOW + 1, 40, 1)) < 1e-4


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_attention_that_is_not_ours_is_computed_by_transformers(name: str, tmp_path: Path) -> None:
    reference = saved(tmp_path, *ONE_BY_ONE[name])
    ours = load_model(tmp_path, NAMES["sdpa"]).eval()
    assert largest_difference(ours, reference, (3, WINDOW, WINDOW + 1, 40, 1)) < 1e-4


@pytest.mark.parametrize("name", STATE)
def test_a_model_with_state_takes_one_document_per_row_alone(name: str, tmp_path: Path) -> None:
    reference = saved(tmp_path, *STATE[name])
    ours = load_model(tmp_path, NAMES["sdpa"]).eval()
    with pytest.raises(UserError, match="--documents-per-row 1"):
        largest_difference(ours, reference, (20, 30))
    ids = torch.randint(1, 100, (2, 40))
    documents = Documents(((30, 10), (40,)), CPU, (True, False))
    with torch.no_grad():
        got = ours.base_model(input_ids=ids, use_cache=False, documents=documents).last_hidden_state
        alone = reference.base_model(input_ids=ids[:1, :30], use_cache=False).last_hidden_state
    torch.testing.assert_close(got[:1, :30], alone, atol=1e-4, rtol=1e-4)


def test_a_kernel_that_passes_over_the_window_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: a window that is longer by one token is another attention."""
    from transformers import MistralConfig

    attention.register()
    config = MistralConfig(**{**BASE, "sliding_window": WINDOW})
    assert attention_check.find_way(config, NAMES["sdpa"]).packed
    attention_check._find_way.cache_clear()
    of = Terms.of

    def longer(*given: Any) -> Terms:
        terms = of(*given)
        return Terms(terms.window and terms.window + 1, terms.softcap, terms.sinks)

    monkeypatch.setattr(Terms, "of", longer)
    way = attention_check.find_way(config, NAMES["sdpa"])
    attention_check._find_way.cache_clear()
    assert not way.packed
    assert way.differs == "MistralAttention"


def test_an_encoder_is_no_causal_model() -> None:
    from transformers import BertConfig

    attention.register()
    config = BertConfig(**{**BASE, "is_decoder": False})
    with pytest.raises(UserError, match="tokens that come later"):
        attention_check.find_way(config, NAMES["sdpa"])


def test_a_keyword_that_says_something_is_not_passed_over() -> None:
    states = [torch.randn(1, 2, 6, 8) for _ in range(3)]
    with pytest.raises(UserError, match="position_bias"):
        by_sdpa(torch.nn.Module(), *states, None, position_bias=torch.zeros(1, 2, 6, 6))
    with pytest.raises(UserError, match="is_causal"):
        by_sdpa(torch.nn.Module(), *states, None, is_causal=False)


@pytest.mark.parametrize(
    "terms", [{"sliding_window": 16}, {"softcap": 3.0}, {"sliding_window": 9, "softcap": 3.0}]
)
def test_flex_attention_has_the_terms_of_sdpa(terms: dict[str, Any]) -> None:
    torch.manual_seed(0)
    states = [torch.randn(2, heads, 128, 16) for heads in (4, 2, 2)]
    documents = Documents(((40, 50, 38), (128,)), CPU)
    one, other = (
        kernel(torch.nn.Module(), *states, None, documents=documents, **terms)[0]
        for kernel in (by_flex, by_sdpa)
    )
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_blocks_of_a_window_are_the_whole_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [torch.randn(1, 2, 100, 8) for _ in range(3)]
    whole, _ = by_sdpa(torch.nn.Module(), *states, None, sliding_window=7)
    monkeypatch.setattr(attention, "BLOCK", 16)
    blocks, _ = by_sdpa(torch.nn.Module(), *states, None, sliding_window=7)
    torch.testing.assert_close(whole, blocks, atol=1e-6, rtol=1e-6)


def test_what_a_plugin_cannot_compute_is_refused() -> None:
    alone = packing.Way("eager", packed=False, differs="BloomAttention")
    packing.check_rows(alone, "ddp", 512, 9, tell=False)
    packing.check_rows(alone, "fsdp", 512, 1, tell=False)
    for plugin in ("fsdp", *rules.PLUGINS):
        if plugin in packing.CALLS_AGAIN:
            packing.check_rows(alone, plugin, 512, 2, tell=False)
            continue
        with pytest.raises(UserError) as refused:
            packing.check_rows(alone, plugin, 512, 2, tell=False)
        assert str(refused.value) == (
            "BloomAttention is not what llmforge's kernels compute, so documents are computed one at a time, which "
            f"--plugin {plugin} cannot; use ddp or zero2, or prepare the data with --documents-per-row 1."
        )
    with pytest.raises(UserError, match=r"MambaBlock.*--documents-per-row 1"):
        packing.check_rows(packing.Way("eager", False, state="MambaBlock"), "native", 512, 2, tell=False)
    growing = packing.Way(NAMES["sdpa"], growing=256, kind="dynamic")
    packing.check_rows(growing, "native", 256, 2, tell=False)
    with pytest.raises(UserError, match="--max-length 256"):
        packing.check_rows(growing, "native", 512, 2, tell=False)


def test_a_training_says_which_class_takes_documents_one_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A warning where it costs time, nothing where a row has one document, a refusal under a plugin that cannot."""
    saved(tmp_path, *ONE_BY_ONE["bloom"])
    capsys.readouterr()  # transformers has its progress bar there
    vocabulary = Vocabulary(BASE["vocab_size"], BASE["vocab_size"], BASE["vocab_size"])

    def build(plugin: str, documents_per_row: int, processes: int = 1) -> str:
        flags = {"plugin": plugin, "mixed_precision": "fp32"}
        config = TrainConfig(pretrained=tmp_path, dataset=[tmp_path], save_dir=tmp_path / "run", **flags)
        world = World(0, processes, 0, processes)
        build_engine(config, tmp_path, vocabulary, 2, CPU, world, 64, documents_per_row)
        return capsys.readouterr().err

    warning = build("native", 5)
    assert "warning: " in warning
    assert "BloomAttention" in warning or "BloomForCausalLM" in warning
    assert "one at a time" in warning
    assert "up to 5 forward passes" in warning
    assert not build("native", 1)
    with pytest.raises(
        UserError, match=r"Bloom\w+ is not .* --plugin fsdp cannot; use ddp or zero2, or prepare"
    ):
        build("fsdp", 5, processes=2)
