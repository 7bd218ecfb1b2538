"""One loss curve from every engine: the same steps on the same rows by native ddp and by ColossalAI's plugins, on a CPU.

    python benchmarks/engine_curves.py --steps 50

A two-layer LLaMA of random weights learns packed rows of repeated patterns, 8 rows per step in 2 or 4 processes. The
table gives the largest difference from native ddp in float32, over all steps, of the mean loss and of the gradient
norm before clipping: the norm finds what losses hide. Needs the environment of ColossalAI (docs/colossalai.md).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmforge.weights.directory import ModelDirectory

ROWS, LENGTH, VOCABULARY, OLD = 8, 64, 384, 300
REFERENCE = "ddp fp32"
# What runs on how many processes: name, plugin, precision, layout (tensor, pipeline, zero).
DATA_PARALLEL = ("zero1", "zero2", "zero2_cpu")
RUNS: dict[int, list[tuple[str, str, str, dict[str, int]]]] = {
    2: [
        (REFERENCE, "ddp", "fp32", {}),
        ("ddp bf16", "ddp", "bf16", {}),
        ("torch_ddp fp32", "torch_ddp", "fp32", {}),
        *(
            (f"{plugin} {precision}", plugin, precision, {})
            for plugin in DATA_PARALLEL
            for precision in ("fp32", "bf16")
        ),
        *(("3d tp 2 " + p, "3d", p, {"tensor": 2}) for p in ("fp32", "bf16")),
        *(("3d pp 2 " + p, "3d", p, {"pipeline": 2}) for p in ("fp32", "bf16")),
        ("3d zero 1 bf16", "3d", "bf16", {"zero": 1}),
        ("gemini bf16", "gemini", "bf16", {}),
        ("gemini_auto bf16", "gemini_auto", "bf16", {}),
    ],
    4: [*(("3d tp 2 x pp 2 " + p, "3d", p, {"tensor": 2, "pipeline": 2}) for p in ("fp32", "bf16"))],
}


@dataclass(frozen=True)
class Row:
    """A packed row as `PackedDataset` gives it."""

    input_ids: np.ndarray
    labels: np.ndarray
    seq_lengths: np.ndarray
    seq_categories: list[str]


def make_row(number: int) -> Row:
    """Two documents, each a pattern of three tokens again and again."""
    chance = np.random.default_rng(number)
    first = int(chance.integers(20, LENGTH - 20))
    lengths = np.array([first, LENGTH - first])
    ids = np.concatenate([np.resize(chance.integers(1, 330, size=3), n) for n in lengths])
    return Row(ids, ids, lengths, ["a", "a"])


def make_model(path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    config = LlamaConfig(vocab_size=VOCABULARY, **sizes, **heads, tie_word_embeddings=False)
    LlamaForCausalLM(config).save_pretrained(path)


def make_engine(plugin: str, precision: str, layout: dict[str, int], model: Path) -> Any:
    from llmforge.backends.colossalai import compat
    from llmforge.backends.common.processes import world_from_environment
    from llmforge.backends.common.settings import Settings
    from llmforge.backends.common.trainable import parse

    settings = Settings(
        model=ModelDirectory(model),
        precision=precision,
        trainable=parse("all"),
        old_rows=OLD,
        rows=330,
        groups=2,
        seed=0,
    )
    world = world_from_environment()
    if plugin == "ddp":
        from llmforge.backends.torch.parallel import DDPEngine

        return DDPEngine(settings, world)
    compat.install()
    from llmforge.backends.colossalai.engine import Layout
    from llmforge.backends.colossalai.gemini import GeminiEngine
    from llmforge.backends.colossalai.hybrid import HybridEngine
    from llmforge.backends.colossalai.plain import TorchDDPEngine, ZeroEngine

    kinds = {
        "torch_ddp": TorchDDPEngine,
        "3d": HybridEngine,
        "gemini": GeminiEngine,
        "gemini_auto": GeminiEngine,
    }
    return kinds.get(plugin, ZeroEngine)(plugin, settings, world, Layout(**layout), True)


def train(engine: Any, steps: int) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step."""
    from llmforge.train.batches import Groups, MicroBatches, make_micro_batch

    groups, micro = Groups(("a",), OLD), 2
    found = []
    for step in range(steps):
        rows = np.arange(step * ROWS, (step + 1) * ROWS)
        batches = [
            make_micro_batch([make_row(int(n)) for n in share], micro, LENGTH, groups, cross_document=False)
            for share in MicroBatches(micro, ROWS).of_rank(rows, engine.world)
        ]
        result = engine.train_step(batches, 3e-3, lambda *_: True)
        found.append((result.loss, result.gradient_norm))
    return found


def work(model: Path, steps: int, output: Path) -> None:
    """One process of several: all runs of its number of processes."""
    import torch

    from llmforge.backends.common.processes import join_processes, leave_processes

    world = join_processes(torch.device("cpu"))
    curves = {}
    for name, plugin, precision, layout in RUNS[world.size]:
        curves[name] = train(make_engine(plugin, precision, layout, model), steps)
        if world.is_main:
            output.write_text(json.dumps(curves))
            print(f"{name}: loss {curves[name][0][0]:.4f} to {curves[name][-1][0]:.4f}", file=sys.stderr)
    leave_processes()


def show(curves: dict[str, list[tuple[float, float]]]) -> None:
    reference = np.array(curves[REFERENCE])
    print("| engine | largest difference of the loss | of the gradient norm | last loss |\n|---|---|---|---|")
    for name, curve in curves.items():
        loss, norm = np.abs(np.array(curve) - reference).max(axis=0)
        print(f"| {name} | {loss:.2g} | {norm:.2g} | {curve[-1][0]:.4f} |")
    print(
        f"\nreference: loss {reference[0, 0]:.4f} to {reference[-1, 0]:.4f}, norms {reference[:, 1].min():.2f} to {reference[:, 1].max():.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", type=Path, help="all curves, as JSON")
    parser.add_argument("--worker", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker[0], options.steps, options.worker[1])
        return
    curves: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder) / "model")
        for processes in RUNS:
            found = Path(folder) / f"{processes}.json"
            launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
            words = (
                __file__,
                "--steps",
                str(options.steps),
                "--worker",
                str(Path(folder) / "model"),
                str(found),
            )
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run([sys.executable, *launcher, *words], check=True, env=environment)
            curves |= json.loads(found.read_text())
    show(curves)
    if options.output:
        options.output.write_text(json.dumps(curves))


if __name__ == "__main__":
    main()
