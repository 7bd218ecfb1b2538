"""Counted FLOPs are those that torch counts of a forward and backward pass."""

import json

import pytest
import torch
from experiments.flops import initialization_flops, token_flops
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

TOKENS = 48


@pytest.mark.parametrize("trainable", ["all", "embeddings", "new-embeddings"])
def test_they_are_what_torch_counts_and_half_of_attention_which_is_causal(tiny_model, trainable):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")
    for name, weight in model.named_parameters():
        weight.requires_grad_(trainable == "all" or "embed" in name)
    ids = torch.arange(TOKENS)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids).logits.sum().backward()
    config = json.loads((tiny_model / "config.json").read_text())
    counted = token_flops(config, config["vocab_size"], TOKENS, trainable)
    of_torch = counted.layers + counted.head + 2 * counted.attention
    assert counter.get_total_flops() / TOKENS == pytest.approx(of_torch, rel=2e-3)  # and 2 for each rotation


def test_what_is_not_counted_is_refused():
    with pytest.raises(ValueError, match="mamba"):
        token_flops({"model_type": "mamba"}, 10, 1)
    with pytest.raises(ValueError, match="lora"):
        token_flops({"model_type": "llama"}, 10, 1, "lora")
    with pytest.raises(ValueError, match="distill"):
        initialization_flops("distill", 10, 64, 1)
