"""Norms and MLPs that keep less: the same forward bits and gradients as transformers' own, from fewer bytes."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OlmoConfig, Qwen3Config

from llmforge.backends.torch.memory_saving import keep_less

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def make(config: type) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**SIZES))
    with torch.no_grad():  # norm weights of 1 would hide a factor
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    return model


def run(model: Any, ids: torch.Tensor, autocast: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Logits, gradients, and the bytes kept for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(input_ids=ids, use_cache=False).logits.float()
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        size = sum(kept.values())
    loss.backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, size


@pytest.mark.parametrize("config", [LlamaConfig, Qwen3Config])
def test_the_same_logits_and_gradients(config: type) -> None:
    plain = make(config)
    lean = copy.deepcopy(plain)
    assert keep_less(lean) == 6  # two norms and an MLP in each of two layers
    ids = torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(1))
    expected, gradients, _ = run(plain, ids, autocast=False)
    logits, found, _ = run(lean, ids, autocast=False)
    assert torch.equal(logits, expected)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_bf16_keeps_two_thirds_of_the_bytes() -> None:
    plain = make(LlamaConfig)
    lean = copy.deepcopy(plain)
    keep_less(lean)
    ids = torch.randint(0, 64, (8, 128), generator=torch.Generator().manual_seed(1))
    expected, gradients, before = run(plain, ids, autocast=True)
    logits, found, after = run(lean, ids, autocast=True)
    torch.testing.assert_close(logits, expected)
    assert after < 0.7 * before
    for name, gradient in gradients.items():
        assert (found[name] - gradient).norm() < 0.02 * gradient.norm() + 1e-6, name


def test_a_family_that_is_not_known_is_left_alone() -> None:
    model = AutoModelForCausalLM.from_config(OlmoConfig(**SIZES))
    assert keep_less(model) == 0
