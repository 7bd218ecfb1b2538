"""Which engine a run gets."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llmforge.backends.base import World
from llmforge.backends.build import choose_plugin, count_parameters, device_memory
from llmforge.weights.read import open_weights

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_are_counted_not_their_bytes(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(30, 7, dtype=dtype), "b": torch.zeros(5, dtype=dtype)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert count_parameters(open_weights(tmp_path)) == 215


def test_a_model_is_shared_only_where_a_process_cannot_hold_it() -> None:
    two = World(0, 2, 0, 2)
    assert choose_plugin("auto", World(), CPU, 10**15, lora=False) == "native"
    assert choose_plugin("auto", two, CPU, 1000, lora=False) == "ddp"
    assert choose_plugin("auto", two, CPU, 10**15, lora=False) == "fsdp"
    # Ten bytes of memory per parameter and process: enough for the weights under adapters, not to train them all.
    parameters = device_memory(CPU) // 20
    assert choose_plugin("auto", two, CPU, parameters, lora=True) == "ddp"
    assert choose_plugin("auto", two, CPU, parameters, lora=False) == "fsdp"
