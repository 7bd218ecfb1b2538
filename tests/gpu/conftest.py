"""Tests that need a GPU: skipped without one. LLMFORGE_GPU_TESTS=cpu rehearses them on a CPU, with what runs there."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmforge.backends.base import MicroBatch, StepResult
from llmforge.backends.common.settings import Settings
from llmforge.backends.common.trainable import parse
from llmforge.weights.directory import ModelDirectory

VOCABULARY, OLD_ROWS, LENGTH = 1024, 700, 256
ROWS = ((100, 156), (256,), (1, 30, 129, 96), (16,) * 16)  # the documents of four rows
REHEARSED = os.environ.get("LLMFORGE_GPU_TESTS") == "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = not torch.cuda.is_available() and not REHEARSED
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if missing:
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if REHEARSED else "cuda")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelDirectory:
    """An untied LLaMA of 4 layers, heads 64 wide and two queries for a key, as kernels on GPUs want them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
    )
    directory = tmp_path_factory.mktemp("gpu") / "model"
    LlamaForCausalLM(config).save_pretrained(directory)
    return ModelDirectory(directory)


@pytest.fixture(scope="session")
def settings(model: ModelDirectory) -> Callable[..., Settings]:
    """`settings(device="cuda", precision="bf16")`: those of a training of all weights."""

    def make(**more: Any) -> Settings:
        given: dict[str, Any] = {"precision": "fp32", "seed": 0, "groups": 1, "head_chunk": 128, **more}
        return Settings(model, trainable=parse("all"), old_rows=OLD_ROWS, rows=VOCABULARY, **given)

    return make


def micro_batch(number: int) -> MicroBatch:
    """Two packed rows of random tokens; every last token of a document has no target."""
    lengths = tuple(ROWS[(2 * number + i) % len(ROWS)] for i in range(2))
    ids = torch.randint(0, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(number))
    targets = ids.roll(-1, 1)
    for row, sizes in enumerate(lengths):
        targets[row, torch.tensor(sizes).cumsum(0) - 1] = -100
    positions = torch.stack([torch.cat([torch.arange(n) for n in sizes]) for sizes in lengths])
    return MicroBatch(ids, targets, positions, torch.zeros_like(ids), lengths)


def train(engine: Any, first: int, steps: int) -> list[StepResult]:
    return [engine.train_step([micro_batch(first + n)], 1e-3, lambda *_: True) for n in range(steps)]


@pytest.fixture(scope="session")
def expected(settings: Callable[..., Settings]) -> list[tuple[float, float]]:
    """Loss and gradient norm of three steps in float32 on the CPU."""
    from llmforge.backends.torch.engine import NativeEngine

    return [(step.loss, step.gradient_norm) for step in train(NativeEngine(settings()), 0, 3)]
