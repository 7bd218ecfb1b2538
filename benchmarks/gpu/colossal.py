"""One call on a GPU: ColossalAI's zero2, gemini and 3d beside the native engine, in bf16 on the same rows.

    python benchmarks/gpu/colossal.py [--layers 22 --width 2048 --length 4096 --micro 4 --steps 8] [--output x.json]
    python benchmarks/gpu/colossal.py --rehearse        # the same code on a CPU, with a tiny model

One process on one GPU, HybridAdam where its kernels build, flash-attn where it is installed, apex's norms where they
work; the line under each says which. Tokens/s of the median step, model FLOPs utilization (docs/training.md) and peak
memory; the mean loss of the first step shows that all computed the same. Needs the environment of ColossalAI (docs/colossalai.md).
"""

import argparse
import gc
import json
import tempfile
from pathlib import Path
from typing import Any

import results as recorded
import torch
import torch.distributed as dist
import training  # benchmarks/gpu/training.py: the model, the rows and the clock
from torch._C._distributed_c10d import HashStore

from llmforge.backends.base import World
from llmforge.backends.colossalai import compat
from llmforge.backends.common.devices import gpu_device
from llmforge.backends.common.settings import Settings
from llmforge.backends.common.trainable import parse
from llmforge.backends.torch.engine import NativeEngine
from llmforge.train.batches import Groups, make_micro_batch
from llmforge.train.shape import read_shape
from llmforge.weights.directory import ModelDirectory

ENGINES = ("native", "zero2", "zero2_cpu", "gemini", "gemini_auto", "3d")


def old_rows(asked: argparse.Namespace) -> int:
    return int(asked.vocabulary * training.OLD_SHARE)


def make_engine(name: str, asked: argparse.Namespace, model: Path, device: torch.device) -> Any:
    settings = Settings(
        model=ModelDirectory(model),
        precision="bf16",
        trainable=parse("all"),
        old_rows=old_rows(asked),
        rows=asked.vocabulary,
        groups=Groups(("a",), old_rows(asked)).count,
        seed=0,
        head_chunk=asked.head_chunk,
        gradient_checkpointing=asked.checkpoint,
        device=str(device),
    )
    if name == "native":
        return NativeEngine(settings)
    from llmforge.backends.colossalai.engine import Layout
    from llmforge.backends.colossalai.gemini import GeminiEngine
    from llmforge.backends.colossalai.hybrid import HybridEngine
    from llmforge.backends.colossalai.plain import ZeroEngine

    kinds = {"3d": HybridEngine, "gemini": GeminiEngine, "gemini_auto": GeminiEngine}
    return kinds.get(name, ZeroEngine)(name, settings, World(), Layout(), asked.rehearse)


def run(name: str, asked: argparse.Namespace, model: Path, data: list[Any], device: torch.device) -> Any:
    """(seconds of a step, loss of the first, what runs)."""
    engine = make_engine(name, asked, model, device)
    groups = Groups(("a",), old_rows(asked))
    batches = [
        make_micro_batch(data[i : i + asked.micro], asked.micro, asked.length, groups, cross_document=False)
        for i in range(0, len(data), asked.micro)
    ]
    losses: list[float] = []

    def step(number: int) -> None:
        batch = batches[number % len(batches)]
        losses.append(engine.train_step([batch], 1e-5, lambda *_: True).loss)

    return training.timed(step, asked.steps, device), losses[0], engine.describe()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # A vocabulary that is a multiple of 64, as 3d needs it.
    sizes = {"vocabulary": 69_120, "layers": 22, "width": 2048, "length": 4096, "micro": 4, "steps": 4}
    sizes["head-chunk"] = 1536
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--checkpoint", action="store_true", help="recompute activations, in all")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with 2 layers of width 64")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    if asked.rehearse:
        tiny = {
            "vocabulary": 1024,
            "layers": 2,
            "width": 256,
            "length": 256,
            "micro": 2,
            "steps": 2,
            "head_chunk": 128,
        }
        vars(asked).update(tiny)
    device = torch.device("cpu" if asked.rehearse else "cuda")
    compat.install()
    backend = "gloo" if asked.rehearse else "nccl"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    machine = "CPU (rehearsal)" if asked.rehearse else torch.cuda.get_device_name()
    known = None if asked.rehearse else gpu_device(machine, 0)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as work:
        model = training.make_model(asked, Path(work) / "model")
        data = training.rows(asked, asked.micro * 4)
        visible = training.visible_keys(data)
        shape = read_shape(ModelDirectory(model))
        print(
            f"{machine}: {shape.parameters:,} parameters, rows of {asked.length}, {asked.micro} at a time, bf16"
        )
        for name in ENGINES:
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                seconds, loss, about = run(name, asked, model, data, device)
            except Exception as error:  # one engine that fails must not cost the others their figures
                print(f"{name:12} failed: {' '.join(str(error).split())[:200]}")
                results[name] = {"failed": str(error)[:500]}
                recorded.write("colossalai", name, **results[name])
                continue
            speed = asked.micro * asked.length / seconds
            flops = speed * shape.flops_per_token("all", visible)
            share = flops / known.bf16 if known else None
            peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
            results[name] = {
                "tokens_per_second": speed,
                "model_flops": flops,
                "mfu": share,
                "peak_bytes": peak,
                "first_loss": loss,
                "about": about,
                "device": machine,
            }
            recorded.write("colossalai", name, **results[name])
            shown = f"{share:.1%} MFU" if share is not None else f"{flops / 1e9:.1f} GFLOP/s"
            print(
                f"{name:12} {speed:>10,.0f} tokens/s {shown:>16} {peak / 1e9:>6.1f} GB  first loss {loss:.4f}",
                flush=True,
            )
            print(f"             {about}")
    if asked.output:
        asked.output.write_text(json.dumps({"device": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
