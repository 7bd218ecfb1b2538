"""The plan against what a run really is: exact where it can be, close where it estimates."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from llmforge.backends.base import MicroBatch
from llmforge.backends.build import adapters
from llmforge.backends.common import attention
from llmforge.backends.common.devices import KNOWN, gpu_device
from llmforge.backends.common.lora import Lora
from llmforge.backends.common.model import CausalLoss, load_model
from llmforge.backends.common.settings import PRECISIONS
from llmforge.backends.torch.memory_saving import keep_less
from llmforge.errors import UsageError, UserError
from llmforge.train.lora_options import LoraOptions
from llmforge.train.options import TrainOptions
from llmforge.train.plan import activations, make_plan
from llmforge.train.roofline import floor_seconds, step_parts
from llmforge.train.shape import read_shape
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.modules import empty_causal


def test_counts_are_those_of_the_run(
    train: Callable[..., Any],
    tiny_model: Path,
    tiny_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = TrainOptions(
        model=tiny_model, data=[tiny_data], output=tmp_path, micro_batch_size=4, num_epochs=2
    )
    plan = make_plan(config, ModelDirectory(tiny_model), KNOWN["h100"], processes=2)
    assert (plan.parameters, plan.trained_parameters) == (38_624, 38_624)
    assert (plan.rows_per_step, plan.steps) == (8, 12)
    assert plan.memory["optimizer"] == 8 * 38_624
    assert "fsdp" not in plan.render()
    assert train(micro_batch_size=4, dry_run=True) is None
    assert "38,624" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    manifest = train(micro_batch_size=4).manifest
    assert manifest.metrics["steps"] == 11


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(("width", "intermediate", "heads", "groups"), [(128, 344, 4, 4), (144, 384, 9, 3)])
def test_activations_are_what_autograd_keeps(
    precision: str, width: int, intermediate: int, heads: int, groups: int, tmp_path: Path
) -> None:
    sizes = {"vocab_size": 256, "hidden_size": width, "intermediate_size": intermediate}
    config = LlamaConfig(**sizes, num_hidden_layers=6, num_attention_heads=heads, num_key_value_heads=groups)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    dtype = PRECISIONS[precision]
    causal = load_model(
        ModelDirectory(tmp_path), attention.NAMES[attention.choose(torch.device("cpu"), dtype, "auto")]
    )
    keep_less(causal)
    ids = torch.randint(0, 256, (2, 256))
    positions = torch.arange(256).repeat(2, 1)
    batch = MicroBatch(ids, ids, positions, torch.zeros_like(ids), ((100, 156), (256,)))
    weights = {p.untyped_storage().data_ptr() for p in causal.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    low = dtype.itemsize
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=precision == "bf16"),
    ):
        CausalLoss(causal, dtype, 64, None)(batch)
    shape = read_shape(ModelDirectory(tmp_path))
    casts = low * shape.layers * shape.layer_parameters if low == 2 else 0
    found = sum(storage.nbytes() for storage in kept.values()) - casts
    assert activations(shape, ids.numel(), low, recomputed=False) == pytest.approx(found, rel=0.03)


def test_the_floor_counts_the_operations_of_the_plan(tiny_model: Path, tiny_data: Path) -> None:
    shape = read_shape(ModelDirectory(tiny_model))
    parts = {part.name: part for part in step_parts(shape, 1000, 2, 50.0, low=2, chunk=512)}
    attention = parts["attention"].flops * 3 / 3.5  # which its backward pass computes once more
    counted = parts["products of the layers"].flops + attention + parts["head and loss"].flops
    assert counted == pytest.approx(2000 * shape.flops_per_token("all", 50.0))
    more = step_parts(shape, 1000, 2, 50.0, low=2, chunk=128, recomputed=True)
    assert floor_seconds(more, KNOWN["h100"], "bf16") > floor_seconds(
        list(parts.values()), KNOWN["h100"], "bf16"
    )
    config = TrainOptions(model=tiny_model, data=[tiny_data], output=Path("unused"))
    plan = make_plan(config, ModelDirectory(tiny_model), KNOWN["h100"])
    assert plan.floor_tokens_per_second
    assert "at most" in plan.render()
    # Memory limits a model as small as this one, not the operations that the speed is estimated from.
    assert plan.tokens_per_second == plan.floor_tokens_per_second
    assert plan.hours == pytest.approx(plan.tokens / plan.tokens_per_second / 3600)
    some = TrainOptions(model=tiny_model, data=[tiny_data], output=Path("unused"), trainable="new-embeddings")
    assert "at most" not in make_plan(some, ModelDirectory(tiny_model), KNOWN["h100"]).render()


def test_flops_of_what_is_frozen_are_not_counted(tiny_model: Path) -> None:
    shape = read_shape(ModelDirectory(tiny_model))
    everything = shape.flops_per_token("all", 10.0)
    forward = 2 * (3 * shape.layer_parameters + 336 * 32) + 4 * 3 * 32 * 10
    assert everything == pytest.approx(3 * forward)
    embeddings = shape.flops_per_token("new-embeddings", 10.0)
    assert embeddings == pytest.approx(2 * forward + 2 * 336 * 32)


@pytest.mark.parametrize(
    "lora",
    [LoraOptions(lora_rank=3), LoraOptions(lora_rank=2, lora_targets=["down_proj", "q_proj"], dora=True)],
)
def test_adapters_are_counted_as_peft_makes_them(
    lora: LoraOptions, tiny_model: Path, tiny_data: Path
) -> None:
    source, device = ModelDirectory(tiny_model), KNOWN["h100"]
    config = TrainOptions(
        model=tiny_model, data=[tiny_data], output=Path("unused"), trainable="lora", lora=lora
    )
    causal, wanted = empty_causal(source.config, tiny_model), adapters(lora)
    assert wanted is not None
    Lora(causal, wanted, 0)
    made = sum(p.numel() for p in causal.parameters() if p.requires_grad)
    plan = make_plan(config, source, device)
    assert plan.trained_parameters == made > 0
    assert plan.memory["optimizer"] == 8 * made
    other = TrainOptions(
        model=tiny_model,
        data=[tiny_data],
        output=Path("unused"),
        trainable="lora",
        lora=replace(lora, lora_targets=["c_attn"]),
    )
    with pytest.raises(UserError, match="--lora-targets c_attn"):
        make_plan(other, source, device)


MIXTURE = {"num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "head_dim": 16}
LATENT = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "first_k_dense_replace": 1,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 8,
}


@pytest.mark.parametrize(
    ("kind", "settings", "idle"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2}, 0),
        ("opt", {"hidden_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 32}, 0),
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 2}, 0),
        ("qwen3_moe", MIXTURE, 2 * 3 * 3 * 16 * 32),  # layers x experts x matrices
        ("deepseek_v3", LATENT, 2 * 3 * 16 * 32),  # the second layer alone has experts
    ],
)
def test_every_kind_is_counted_by_what_a_token_meets(
    kind: str, settings: dict[str, Any], idle: int, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    given = {
        **({} if "n_layer" in settings else sizes),
        "num_key_value_heads": 2,
        "vocab_size": 96,
        **settings,
    }
    config = AutoConfig.for_model(kind, **given)
    config.save_pretrained(tmp_path)
    shape, model = read_shape(ModelDirectory(tmp_path)), AutoModelForCausalLM.from_config(config)
    assert (shape.parameters, shape.layers, shape.heads) == (model.num_parameters(), 2, 2)
    assert sum(shape.per_layer) - sum(shape.active_per_layer) == idle
    assert shape.trained("0") == shape.per_layer[0]
    keys, values = (24, 8) if kind == "deepseek_v3" else (16, 16)
    forward = 2 * (sum(shape.active_per_layer) + 96 * 32) + 2 * 2 * 2 * (keys + values) * 10
    assert shape.flops_per_token("all", 10.0) == 3 * forward


def test_devices_are_found_by_the_name_cuda_gives_them() -> None:
    found = gpu_device("NVIDIA H100 80GB HBM3", 85_000_000_000)
    assert found is not None
    assert (found.bf16, found.memory) == (989e12, 85_000_000_000)
    for name in (
        "A100-SXM4-80GB",
        "Tesla V100-SXM2-32GB",
        "NVIDIA GeForce RTX 4090",
        "NVIDIA L40S",
        "NVIDIA H200",
    ):
        assert gpu_device(name, 1) is not None, name
    for name in (
        "Some GPU",
        "NVIDIA GeForce RTX 3060",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "Quadro RTX 6000",
        "NVIDIA RTX A1000",
        "NVIDIA GH200 480GB",
        "NVIDIA H20",
        "NVIDIA L4",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "Tesla V100-PCIE-16GB",
    ):
        assert gpu_device(name, 1) is None, name


def test_the_command_prints_a_plan(llmforge: Any, tiny_model: Path, tiny_data: Path) -> None:
    words = ("plan", "--pretrained", tiny_model, "--dataset", tiny_data, "--device")
    made = json.loads(llmforge(*words, "a100-80gb", "--json").stdout)
    assert made["memory_bytes"] == sum(made["memory"].values())
    assert made["tokens_per_second"] > 0
    lora = json.loads(llmforge(*words, "h100", "--trainable", "lora", "--lora-rank", 2, "--json").stdout)
    assert 0 < lora["trained_parameters"] < made["trained_parameters"]
    refused = llmforge(*words, "abacus", code=2)
    assert "--device abacus" in refused.stderr


def test_unknown_devices_are_refused() -> None:
    from llmforge.backends.common.devices import by_name

    with pytest.raises(UsageError, match="h100"):
        by_name("tpu")
