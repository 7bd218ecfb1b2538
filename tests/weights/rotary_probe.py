"""Run by an interpreter with any transformers: what positions and windows a configuration leads to.

python rotary_probe.py < {"make": [[directory, model_type, settings], ...], "llmforge": [directory, ...], "plain": [...]}

makes `config.json` files by save_pretrained, then prints what llmforge (or its refusal) and what transformers alone makes
of others. `portable` are pairs (source, target): a configuration as llmforge writes it.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from llmforge.errors import UserError
from llmforge.weights.config import load_config, portable, read_config


def make(directory: str, kind: str, settings: dict[str, Any]) -> None:
    AutoConfig.for_model(kind, **settings).save_pretrained(directory)


def by_llmforge(directory: str) -> Any:
    try:
        return probe(load_config(Path(directory)))
    except UserError as error:
        return str(error)


def probe(config: Any) -> Any:
    """(factor of cosines, frequencies) of every rotary module, and the window of every layer."""
    model = AutoModelForCausalLM.from_config(config)
    seen = set()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name.endswith("inv_freq") and "original" not in name:
                prefix = name.removesuffix("inv_freq")
                scaling = getattr(
                    module, f"{prefix}attention_scaling", getattr(module, "attention_scaling", 1.0)
                )
                frequencies = tuple(float(f"{x:.5g}") for x in buffer.flatten().tolist())
                seen.add((round(float(scaling), 6), frequencies))
    windows = [
        _window(module, model.config)
        for name, module in model.named_modules()
        if name.endswith(("attn", "attention")) and hasattr(module, "layer_idx")
    ]
    return [[list(map(float, [scaling, *f])) for scaling, f in sorted(seen)], windows]


def _window(module: Any, config: Any) -> int | None:
    """Of a layer; in transformers 4 some know it only by a rule in their forward pass."""
    if hasattr(module, "sliding_window"):
        return module.sliding_window
    window = getattr(config, "sliding_window", None) or None
    types = getattr(config, "layer_types", None)
    if config.model_type in ("qwen2", "qwen2_moe"):
        if types is None:
            return (
                window if config.use_sliding_window and module.layer_idx >= config.max_window_layers else None
            )
        return window if types[module.layer_idx] == "sliding_attention" else None
    return window


def run(wanted: dict[str, Any]) -> dict[str, Any]:
    for arguments in wanted.get("make", []):
        make(*arguments)
    for source, target in wanted.get("portable", []):
        Path(target).mkdir(parents=True)
        (Path(target) / "config.json").write_text(json.dumps(portable(read_config(Path(source)))))
    return {
        "llmforge": {directory: by_llmforge(directory) for directory in wanted.get("llmforge", [])},
        "plain": {
            directory: probe(AutoConfig.from_pretrained(directory)) for directory in wanted.get("plain", [])
        },
    }


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    print(json.dumps(run(json.load(sys.stdin))))
