"""The floor of a training step by part, for models of 1.3 B and 7 B parameters, and what each choice adds to it.

    python benchmarks/roofline.py [--device h100] [--vocabulary 69104] [--visible 500]

Computed, not measured: operations and bytes as `llmforge.train.roofline` counts them, which `llmforge plan` uses as well,
and the device's peak and bandwidth from its data sheet. One optimizer step of one micro-batch of 16,384 tokens in bf16, of
which a token sees `--visible` keys: half of a document of 1,000 tokens.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from llmforge.backends.common.devices import by_name, head_chunk
from llmforge.train.roofline import floor_seconds, step_parts
from llmforge.train.shape import Shape, read_shape
from llmforge.weights.directory import ModelDirectory

TOKENS = 16_384
SHAPES: dict[str, dict[str, Any]] = {
    "1.3 B": {"layers": 22, "width": 2048, "inner": 5632, "heads": 32, "keys": 8},
    "7 B": {"layers": 32, "width": 4096, "inner": 11008, "heads": 32, "keys": 32},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="h100")
    parser.add_argument("--vocabulary", type=int, default=69_104)
    parser.add_argument("--visible", type=float, default=500)
    asked = parser.parse_args()
    device = by_name(asked.device)
    chunk = head_chunk(asked.vocabulary, 2, on_cpu=False)
    for name, sizes in SHAPES.items():
        shape = make_shape(asked.vocabulary, **sizes)
        usual: dict[str, Any] = {"low": 2, "chunk": chunk}
        parts = step_parts(shape, TOKENS, 1, asked.visible, **usual)
        print(
            f"\n{name}: {shape.parameters:,} parameters, {TOKENS:,} tokens, chunks of {chunk:,}, {device.name}\n"
        )
        print("| part | TFLOP | GB | ms at least | limit |\n|---|---:|---:|---:|---|")
        for part in parts:
            seconds = part.seconds(device, "bf16")
            limit = "memory" if part.bytes / device.bandwidth >= seconds else "computing"
            print(
                f"| {part.name} | {part.flops / 1e12:.1f} | {part.bytes / 1e9:.1f} | {seconds * 1e3:.1f} | {limit} |"
            )
        whole = floor_seconds(parts, device, "bf16")
        total = sum(p.flops for p in parts) / 1e12, sum(p.bytes for p in parts) / 1e9
        print(f"| **all** | {total[0]:.1f} | {total[1]:.1f} | {whole * 1e3:.1f} | |")
        print("\n| choice | ms at least | tokens/s at most | MFU at most |\n|---|---:|---:|---:|")
        model_flops = TOKENS * shape.flops_per_token("all", asked.visible)
        choices: dict[str, tuple[dict[str, Any], int]] = {
            "as it is": ({}, 1),
            "chunks of 512": ({"chunk": 512}, 1),
            "chunks of 4,096": ({"chunk": 4096}, 1),
            "activations recomputed": ({"recomputed": True}, 1),
            "8 micro-batches a step": ({}, 8),
        }
        for choice, (changed, micro) in choices.items():
            seconds = floor_seconds(
                step_parts(shape, TOKENS, micro, asked.visible, **{**usual, **changed}), device, "bf16"
            )
            mfu = micro * model_flops / seconds / device.peak("bf16")
            print(f"| {choice} | {seconds * 1e3:.1f} | {micro * TOKENS / seconds:,.0f} | {mfu:.0%} |")


def make_shape(vocabulary: int, layers: int, width: int, inner: int, heads: int, keys: int) -> Shape:
    """The shape of a LLaMA, of one layer built and counted `layers` times."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        tie_word_embeddings=False,
    )
    with tempfile.TemporaryDirectory() as directory:
        config.save_pretrained(directory)
        one = read_shape(ModelDirectory(Path(directory)))
    return replace(
        one,
        layers=layers,
        parameters=one.parameters + (layers - 1) * one.layer_parameters,
        per_layer=one.per_layer * layers,
        active_per_layer=one.active_per_layer * layers,
    )


if __name__ == "__main__":
    main()
