"""Layers compiled and computed again: one compilation for all of them, whatever the documents, and the same numbers."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

from llmforge.backends.base import MicroBatch, StepResult
from llmforge.backends.common.settings import Settings
from llmforge.backends.common.trainable import parse
from llmforge.backends.torch.engine import NativeEngine
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.modules import decoder_layers

LAYERS, LENGTH = 10, 48  # more layers than torch.compile compiles one function for
DOCUMENTS = ((20, 28), (48,), (3, 5, 40))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
    )
    directory = tmp_path_factory.mktemp("layers")
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def make_engine(model: Path, **more: Any) -> NativeEngine:
    common = {"precision": "fp32", "trainable": parse("all"), "old_rows": 90, "rows": 96, "groups": 1}
    return NativeEngine(Settings(model=ModelDirectory(model), seed=0, **common, **more))


def step(engine: NativeEngine, lengths: tuple[int, ...]) -> StepResult:
    ids = torch.randint(1, 96, (1, LENGTH), generator=torch.Generator().manual_seed(len(lengths)))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    batch = MicroBatch(ids, ids.roll(-1, 1), positions, torch.zeros_like(ids), (lengths,))
    return engine.train_step([batch], 1e-3, lambda *_: True)


@pytest.mark.parametrize("recomputed", [False, True])
def test_all_layers_share_one_compilation_whatever_the_documents(
    recomputed: bool, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # what is traced counts
    engine = make_engine(model, compile=True, gradient_checkpointing=recomputed)
    counters.clear()
    found = [step(engine, lengths).loss for lengths in DOCUMENTS]
    graphs = counters["stats"]["unique_graphs"]
    assert 0 < graphs < LAYERS
    assert not counters["recompile_limit"]
    plain = make_engine(model)
    assert found == pytest.approx([step(plain, lengths).loss for lengths in DOCUMENTS], rel=1e-5)


def test_layers_computed_again_give_the_same_bits(model: Path) -> None:
    plain, again = (make_engine(model, gradient_checkpointing=recomputed) for recomputed in (False, True))
    calls = {id(plain): 0, id(again): 0}

    def count(engine: NativeEngine) -> None:
        calls[id(engine)] += 1

    for engine in (plain, again):
        for layer in decoder_layers(engine.causal):
            layer.input_layernorm.register_forward_hook(lambda *_, engine=engine: count(engine))
    for lengths in DOCUMENTS:
        one, other = step(plain, lengths), step(again, lengths)
        assert (one.loss, one.gradient_norm) == (other.loss, other.gradient_norm)
    assert calls[id(plain)] == LAYERS * len(DOCUMENTS)
    assert calls[id(again)] == 2 * LAYERS * len(DOCUMENTS)
    for name, weight in plain.causal.state_dict().items():
        assert torch.equal(weight, again.causal.state_dict()[name]), name
