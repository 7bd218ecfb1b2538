"""The host waits for the device once in an optimizer step, however many micro-batches it has."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llmforge.backends.base import MicroBatch
from llmforge.backends.common.settings import Settings
from llmforge.backends.common.step import group_sums
from llmforge.backends.common.trainable import parse
from llmforge.backends.torch.engine import NativeEngine
from llmforge.dataset.packed import PackedDataset
from llmforge.train.batches import Groups, make_micro_batch
from llmforge.weights.directory import ModelDirectory

# What makes the host wait for a GPU: reading a number, and results whose size depends on values.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::bincount",
    "aten::unique",
}


class Waits(TorchDispatchMode):
    """Counts the operations that would wait for a GPU; on a CPU they run the same."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := func._schema.name) in WAITING or "_unique" in name:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


class Casts(TorchDispatchMode):
    """Counts the matrices that become bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name == "aten::_to_copy" and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.seen[tuple(args[0].shape)] += 1
        return func(*args, **(kwargs or {}))


def engine_of(model: Path, directory: Path, **more: Any) -> tuple[NativeEngine, list[MicroBatch]]:
    """An engine and four micro-batches."""
    data = PackedDataset([directory])
    groups = Groups(tuple(data.categories), 300)
    chosen = {"precision": "fp32", "trainable": parse("all"), **more}
    settings = Settings(
        model=ModelDirectory(model),
        old_rows=300,
        rows=330,
        groups=groups.count,
        seed=0,
        device="cpu",
        **chosen,
    )
    return NativeEngine(settings), [
        make_micro_batch(data.rows([2 * i, 2 * i + 1]), 2, data.max_length, groups, False) for i in range(4)
    ]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_weights_are_cast_once_a_step_and_nothing_else_changes(
    checkpointing: bool, tiny_model: Path, tiny_data: Path
) -> None:
    more = {"precision": "bf16", "gradient_checkpointing": checkpointing}
    engine, batches = engine_of(tiny_model, tiny_data, **more)
    apart, _ = engine_of(tiny_model, tiny_data, **more)
    apart.module.register_forward_pre_hook(lambda *_: torch.clear_autocast_cache())
    weights = {tuple(p.shape) for n, p in engine.causal.named_parameters() if "_proj" in n}
    casts = []
    for one, count in ((engine, 1), (engine, 4), (apart, 1), (apart, 4)):
        with Casts() as counted:
            result = one.train_step(batches[:count], 1e-3, lambda *_: True)
        assert result.applied
        casts.append(sum(counted.seen[shape] for shape in weights))
    assert casts[0] == casts[1] < casts[3]
    for name, parameter in engine.causal.named_parameters():
        assert torch.equal(parameter, apart.causal.get_parameter(name)), name


@pytest.mark.parametrize("trainable", ["all", "new-embeddings"])
def test_more_micro_batches_make_no_more_waits(trainable: str, tiny_model: Path, tiny_data: Path) -> None:
    engine, batches = engine_of(tiny_model, tiny_data, trainable=parse(trainable))
    seen = []
    for count in (1, 4):
        with Waits() as waits:
            engine.train_step(batches[:count], 1e-3, lambda *_: True)
        seen.append(waits.seen)
    assert seen[0] == seen[1]
    # What remains reads tensors that are on the host already: two sums, and the norm that came with the losses.
    assert sum(seen[1].values()) <= 4, seen[1]
    with Waits() as waits:
        batch = batches[0].kept
        assert batch is not None
        batch.nonzero()
    assert waits.seen  # the counter can see


def test_sums_by_group_are_those_of_a_loop() -> None:
    groups = Groups(("a", "b"), old_rows=4)
    chance = np.random.default_rng(0)
    batches, losses, expected = [], [], np.zeros((2, 4))
    for _ in range(2):
        targets = torch.from_numpy(chance.choice([-100, 1, 7], size=(2, 5)))
        numbers = torch.from_numpy(chance.integers(0, 4, size=(2, 5)))
        values = torch.from_numpy(chance.random(10).astype(np.float32))
        batch = make_micro_batch([], 2, 5, groups, False)
        batches.append(type(batch)(batch.input_ids, targets, batch.positions, numbers, batch.lengths))
        losses.append(values)
        for target, group, value in zip(targets.flatten(), numbers.flatten(), values, strict=True):
            if target != -100:
                expected[:, group] += [float(value), 1]
    assert group_sums(losses, batches, 4).numpy() == pytest.approx(expected)
