"""FSDP2's settings: what stays gathered, and what does not, changes no number."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from llmforge.backends.common.memory import fits_gathered

PROGRAM = """
import torch, torch.distributed as dist
from pathlib import Path
from torch._C._distributed_c10d import HashStore
from llmforge.backends.base import MicroBatch, World
from llmforge.backends.common.settings import Settings
from llmforge.backends.common.trainable import parse
from llmforge.backends.torch.parallel import FSDPEngine
from llmforge.weights.directory import ModelDirectory

dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
ids = torch.randint(1, 96, (1, 48), generator=torch.Generator().manual_seed(0))
batch = MicroBatch(ids, ids.roll(-1, 1), torch.arange(48)[None], torch.zeros_like(ids), ((48,),))


def run(keeps):
    FSDPEngine._keeps_gathered = lambda self: keeps
    settings = Settings(ModelDirectory(Path("{model}")), "bf16", parse("all"), 90, 96, 1, 0)
    engine = FSDPEngine(settings, World())
    found = []
    for _ in range(3):
        step = engine.train_step([batch, batch], 1e-3, lambda *_: True)
        before = engine.embedding_norms()
        held = float(engine.evaluate([batch]).loss.sum())
        assert torch.equal(before, engine.embedding_norms())  # of float32 rows, not of those gathered in 16 bits
        assert all(hasattr(p, "to_local") for p in engine.causal.parameters())
        found.append((step.loss, step.gradient_norm, held))
    return found


assert run(False) == run(True)
"""


def test_weights_that_stay_gathered_change_no_number(
    run_python: Callable[[str], None], tmp_path: Path
) -> None:
    config = LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=3)
    config.num_attention_heads, config.num_key_value_heads = 4, 2
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    run_python(PROGRAM.replace("{model}", str(tmp_path / "model")))


@pytest.mark.parametrize(("parameters", "fits"), [(1.3e9, True), (4e9, True), (7e9, False)])
def test_a_gpu_of_80_gb_keeps_models_whose_16_bits_are_a_tenth_of_it(parameters: float, fits: bool) -> None:
    assert fits_gathered(int(2 * parameters), 80 * 10**9) is fits
