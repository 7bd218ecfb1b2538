"""ColossalAI's plugins without llmforge's engine around them, on two processes that have the same rows.

theirs.py RESULTS.json writes the gradient norms that they tell, divided by the right one.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from ranks import in_ranks


def norm_of(plugin: Any) -> float:
    """The gradient norm of one step, by `plugin` and relative to that of one process in float32."""
    from colossalai.booster import Booster
    from transformers import LlamaConfig, LlamaForCausalLM

    from llmforge.backends.colossalai.optimizer import make_optimizer

    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4))
    ids = torch.randint(0, 128, (2, 32))
    model(input_ids=ids, labels=ids).loss.backward()
    expected = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    model.zero_grad()
    booster = Booster(plugin=plugin)
    inner = make_optimizer(
        [{"params": list(model.parameters())}], (0.9, 0.95), 1e-8, torch.distributed.group.WORLD
    )
    boosted, optimizer, *_ = booster.boost(model, inner)
    booster.backward(boosted(input_ids=ids, labels=ids).loss, optimizer)
    optimizer.step()
    return float(optimizer.get_grad_norm()) / expected


def main() -> None:
    from llmforge.backends.colossalai import rehearsal
    from llmforge.backends.common.processes import join_processes, leave_processes

    world = join_processes(torch.device("cpu"))
    rehearsal.install()
    from colossalai.booster.plugin import GeminiPlugin, LowLevelZeroPlugin, TorchDDPPlugin

    bf16 = {"precision": "bf16", "initial_scale": 1, "max_norm": 1e9}
    found: dict[str, float | str] = {
        "zero": norm_of(LowLevelZeroPlugin(stage=1, **bf16)),
        "zero fp16": norm_of(
            LowLevelZeroPlugin(stage=1, **{**bf16, "precision": "fp16", "initial_scale": 8})
        ),
        "gemini": norm_of(GeminiPlugin(pin_memory=False, enable_async_reduce=False, **bf16)),
        "gemini tp 2": norm_of(GeminiPlugin(tp_size=2, pin_memory=False, enable_async_reduce=False, **bf16)),
    }
    try:
        found["torch_ddp"] = norm_of(TorchDDPPlugin())
    except NotImplementedError as error:
        found["torch_ddp"] = str(error)
    if world.is_main:
        Path(sys.argv[1]).write_text(json.dumps(found))
    leave_processes()


if __name__ == "__main__":
    in_ranks(2, main)
