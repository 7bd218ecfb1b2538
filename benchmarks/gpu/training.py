"""One call on a GPU: tokens/s, model FLOPs utilization and peak memory, beside a bare transformers loop.

    python benchmarks/gpu/training.py [--layers 22 --width 2048 --length 4096 --micro 4 --steps 8]
    [--output x.json]

A LLaMA of about 1 B parameters with 69,104 pieces and random weights, bf16, rows of 4,096 of packed
random documents, through the native engine with every attention kernel that runs here, with and without
torch.compile, and through a plain loop of transformers (SDPA, no documents, logits in one piece). MFU
counts model FLOPs alone: 6 per weight and token and 12 x heads x head width per visible key and layer;
nothing recomputed. `--tiny` runs the same code on a CPU.
"""

import argparse
import gc
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from llmforge.backends.build import computes_in_bf16
from llmforge.backends.common.attention import available
from llmforge.backends.common.devices import gpu_device
from llmforge.backends.common.trainable import parse
from llmforge.backends.torch.engine import NativeEngine, Settings
from llmforge.train.batches import Groups, make_micro_batch
from llmforge.train.plan import read_shape
from llmforge.weights.directory import ModelDirectory

VOCABULARY, OLD_ROWS = 69_104, 32_000


def make_model(asked: argparse.Namespace, target: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=asked.width,
        intermediate_size=asked.width * 11 // 4,
        num_hidden_layers=asked.layers,
        num_attention_heads=asked.width // 64,
        num_key_value_heads=max(1, asked.width // 256),
        max_position_embeddings=asked.length,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(target)
    return target


def rows(asked: argparse.Namespace, count: int) -> list[Any]:
    """Rows of documents of a few hundred tokens, as a corpus of news has them."""
    chance = np.random.default_rng(0)
    made = []
    for _ in range(count):
        lengths: list[int] = []
        while sum(lengths) < asked.length:
            lengths.append(min(int(chance.lognormal(6, 1)) + 2, asked.length - sum(lengths)))
        ids = chance.integers(0, VOCABULARY, asked.length).astype(np.int32)
        made.append(
            SimpleNamespace(
                input_ids=ids, labels=ids, seq_lengths=np.array(lengths), seq_categories=["a"] * len(lengths)
            )
        )
    return made


def timed(step: Any, count: int, device: torch.device) -> float:
    """Seconds of the median step after two to warm up."""
    seconds = []
    for number in range(count + 2):
        began = time.perf_counter()
        step(number)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[2:]))


def run_native(
    asked: argparse.Namespace, model: Path, data: list[Any], device: torch.device, **more: Any
) -> float:
    groups = Groups(("a",), OLD_ROWS)
    engine = NativeEngine(
        Settings(
            model=ModelDirectory(model),
            precision="bf16" if computes_in_bf16(device) else "fp32",
            trainable=parse("all"),
            old_rows=OLD_ROWS,
            rows=VOCABULARY,
            groups=groups.count,
            seed=0,
            head_chunk=asked.head_chunk,
            gradient_checkpointing=asked.checkpoint,
            device=str(device),
            **more,
        )
    )
    batches = [
        make_micro_batch(data[i : i + asked.micro], asked.micro, asked.length, groups, cross_document=False)
        for i in range(0, len(data), asked.micro)
    ]
    return timed(
        lambda n: engine.train_step([batches[n % len(batches)]], 1e-5, lambda loss, norm: True),
        asked.steps,
        device,
    )


def run_bare(asked: argparse.Namespace, model: Path, data: list[Any], device: torch.device) -> float:
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa").to(
        device
    )
    net.train()
    if asked.checkpoint:
        net.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(number: int) -> None:
        start = number * asked.micro % len(data)
        ids = (
            torch.tensor(np.stack([row.input_ids for row in data[start : start + asked.micro]]))
            .long()
            .to(device)
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bf16(device)):
            loss = net(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return timed(step, asked.steps, device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("layers", 22),
        ("width", 2048),
        ("length", 4096),
        ("micro", 4),
        ("steps", 8),
        ("head-chunk", 2048),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--checkpoint", action="store_true", help="recompute activations, in both")
    parser.add_argument("--tiny", action="store_true", help="a model of 2 layers of width 64, for a CPU")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    if asked.tiny:
        asked.layers, asked.width, asked.length, asked.micro, asked.steps, asked.head_chunk = (
            2,
            64,
            256,
            2,
            2,
            128,
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    known = gpu_device(name, 0) if device.type == "cuda" else None
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as work:
        model = make_model(asked, Path(work) / "model")
        data = rows(asked, asked.micro * 4)
        pairs = [(n * (n + 1) / 2, n) for row in data for n in row.seq_lengths.tolist()]
        visible = sum(pair[0] for pair in pairs) / sum(pair[1] for pair in pairs)
        shape = read_shape(ModelDirectory(model))
        print(f"{name}: {shape.parameters:,} parameters, rows of {asked.length}, {asked.micro} at a time")
        dtype = torch.bfloat16 if computes_in_bf16(device) else torch.float32
        runs: dict[str, tuple[Any, float]] = {}
        for kernel in available(device, dtype):
            for compiled in (False, True):
                label = f"llmforge, {kernel}{', compiled' if compiled else ''}"
                runs[label] = (
                    lambda k=kernel, c=compiled: run_native(
                        asked, model, data, device, attention=k, compile=c
                    ),
                    visible,
                )
        runs["bare transformers loop"] = (
            lambda: run_bare(asked, model, data, device),
            (asked.length + 1) / 2,
        )
        for label, (run, keys) in runs.items():
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                seconds = run()
            except Exception as error:  # one kernel that fails must not cost the others their figures
                print(f"{label:32} failed: {' '.join(str(error).split())[:120]}")
                results[label] = {"failed": str(error)[:500]}
                continue
            speed = asked.micro * asked.length / seconds
            flops = speed * shape.flops_per_token("all", keys)
            peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
            share = flops / known.bf16 if known else None
            results[label] = {
                "tokens_per_second": speed,
                "model_flops": flops,
                "mfu": share,
                "peak_bytes": peak,
            }
            shown = f"{share:.1%} MFU" if share is not None else f"{flops / 1e9:.1f} GFLOP/s"
            print(f"{label:32} {speed:>10,.0f} tokens/s  {shown:>16}  {peak / 1e9:>6.1f} GB", flush=True)
    if asked.output:
        asked.output.write_text(json.dumps({"device": name, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
