"""What heads do with their products, and classes that are made otherwise than training expects."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmforge.backends.base import MicroBatch
from llmforge.backends.common import attention, attention_check
from llmforge.backends.common.attention import NAMES
from llmforge.backends.common.model import CausalLoss, load_model
from llmforge.errors import UserError
from llmforge.train.shape import read_shape
from llmforge.weights.architecture import check_supported
from llmforge.weights.config import load_config, read_config
from llmforge.weights.directory import ModelDirectory

from .packed_rows import BASE, saved

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "divides": ("Granite", {"logits_scaling": 4.0}),
    "multiplies, by a field of the same name": ("HyperCLOVAX", {"logits_scaling": 0.25}),
    "multiplies": ("Cohere", {"logit_scale": 0.25}),
    "bounds": ("Gemma2", {"head_dim": 16, "final_logit_softcapping": 2.0}),
    "bounds, in a class that is not Gemma": ("NanoChat", {"final_logit_softcapping": 2.0}),
    "bounds, by another field": (
        "RecurrentGemma",
        {"logits_soft_cap": 2.0, "lru_width": 64, "block_types": ["recurrent", "attention"], "head_dim": 16},
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_loss_is_that_of_transformers_own_logits(name: str, tmp_path: Path) -> None:
    reference = saved(tmp_path, *HEADS[name])
    ids = torch.randint(1, 100, (1, 12))
    targets = torch.cat([ids[:, 1:], torch.tensor([[-100]])], 1)
    batch = MicroBatch(ids, targets, torch.arange(12)[None], torch.zeros_like(ids), ((12,),))
    with torch.no_grad():
        _, mine = CausalLoss(
            load_model(ModelDirectory(tmp_path), NAMES["sdpa"]).eval(), torch.float32, 8, None
        )(batch)
        logits = reference(input_ids=ids, use_cache=False).logits[0, :-1].float()
    theirs = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    torch.testing.assert_close(mine[:-1], theirs, atol=1e-4, rtol=1e-4)


def test_a_head_with_layers_of_its_own_is_refused_before_anything_is_prepared_and_found_by_itself() -> None:
    from transformers import ModernBertDecoderConfig

    with pytest.raises(UserError, match="layers of its own; supported are LLaMA"):
        check_supported({"model_type": "modernbert-decoder"}, Path("m"))
    attention.register()
    sizes = {**BASE, "num_key_value_heads": 4, "cls_token_id": 0, "sep_token_id": 0}
    with pytest.raises(UserError, match=r"computes its logits with more than .*supported are LLaMA"):
        attention_check.find_way(ModernBertDecoderConfig(**sizes), NAMES["sdpa"])


def write(directory: Path, **fields: Any) -> Path:
    (directory / "config.json").write_text(json.dumps({**BASE, **fields}), encoding="utf-8")
    return directory


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "llama4_text", "num_local_experts": 4, "head_dim": 16, "intermediate_size_mlp": 96},
        {
            "model_type": "gemma3n_text",
            "head_dim": 16,
            "intermediate_size": [96, 128],
            "activation_sparsity_pattern": [0.0, 0.0],
            "layer_types": ["sliding_attention", "full_attention"],
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 128,
            "laurel_rank": 4,
        },
    ],
)
def test_a_plan_counts_classes_whose_fields_lie_elsewhere(fields: dict[str, Any], tmp_path: Path) -> None:
    shape = read_shape(ModelDirectory(write(tmp_path, **fields)))
    assert (shape.layers, shape.heads, shape.head_width) == (2, 4, 16)
    assert shape.intermediate >= 96


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"model_type": "ministral", "head_dim": None}, "transformers cannot build a causal language model"),
        ({"model_type": "cpmant"}, "has its layers under an unknown name"),
        ({"model_type": "emu3", "vq_config": {"embed_dim": 8}}, "other parts than its text model"),
        (
            {"model_type": "gemma4", "text_config": {"hidden_size": 64}},
            "text model in a part of its configuration",
        ),
        ({"model_type": "gemma4_text", "hidden_size_per_layer_input": 8}, "second embedding of every token"),
        ({"model_type": "gemma4_assistant"}, "states of another model"),
    ],
)
def test_other_classes_are_refused_in_a_sentence_that_says_what_is_supported(
    fields: dict[str, Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"{what}.*; supported are LLaMA"):
        read_shape(ModelDirectory(write(tmp_path, **fields)))


@pytest.mark.parametrize("infinity", ['{"__float__": "Infinity"}', "Infinity"])
def test_numbers_that_json_lacks_are_read_as_either_version_writes_them(
    infinity: str, tmp_path: Path
) -> None:
    text = json.dumps({**BASE, "model_type": "mamba2", "num_heads": 8, "head_dim": 16, "n_groups": 1})
    (tmp_path / "config.json").write_text(f'{text[:-1]}, "time_step_limit": [0.0, {infinity}]}}')
    assert read_config(tmp_path)["time_step_limit"] == [0.0, float("inf")]
    assert list(load_config(tmp_path).time_step_limit) == [0.0, float("inf")]
