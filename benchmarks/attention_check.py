"""CPU seconds of the comparison before a training, and of documents one at a time against all of a row at once.

python benchmarks/attention_check.py
"""

import time
from typing import Any

import torch
import transformers

from llmforge.backends.common import attention, attention_check, packing
from llmforge.backends.common.attention import NAMES
from llmforge.backends.common.documents import Documents

KINDS = ("Llama", "Mistral", "Gemma3Text", "Qwen3Moe", "DeepseekV3", "Bloom", "Mamba")
LENGTH, TIMES = 512, 9


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    attention.register()
    for kind in KINDS:
        config = getattr(transformers, f"{kind}Config")()
        seconds = []
        for _ in range(2):
            attention_check._FOUND.clear()
            began = time.process_time()
            attention_check.find_way(config, NAMES["sdpa"])
            seconds.append(time.process_time() - began)
        print(f"{kind:12}{seconds[0]:6.2f} s the first time, {seconds[1]:.2f} s again")
    packed, alone = model(packing.Way(NAMES["sdpa"])), model(packing.Way("sdpa", packed=False))
    for documents in (2, 8, 32):
        row = (LENGTH // documents,) * documents
        print(
            f"{documents:2} documents in a row of {LENGTH} tokens, forward and backward: "
            f"{1000 * step(packed, row):.0f} ms at once, {1000 * step(alone, row):.0f} ms one at a time"
        )


def model(way: packing.Way) -> Any:
    """A LLaMA of two layers of width 64 whose rows are computed in `way`."""
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    causal = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=way.name)
    packing.install(causal, way)
    return causal


def step(causal: Any, row: tuple[int, ...]) -> float:
    """The fewest CPU seconds that a forward and a backward pass of documents of these lengths took."""
    ids = torch.randint(1, 100, (1, LENGTH))
    positions = torch.cat([torch.arange(length) for length in row])[None]
    seconds = []
    for _ in range(TIMES):
        began = time.process_time()
        documents = Documents((row,), ids.device)
        output = causal.base_model(
            input_ids=ids, position_ids=positions, use_cache=False, documents=documents
        )
        output.last_hidden_state.sum().backward()
        seconds.append(time.process_time() - began)
    return min(seconds)


if __name__ == "__main__":
    main()
