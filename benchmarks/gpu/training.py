"""Training speed on one GPU: tokens/s, model FLOPs utilization and peak memory by part, beside loops of transformers.

    python benchmarks/gpu/training.py [--vocabulary 69104] [--layers 22 --width 2048 --length 4096 --micro 4 --steps 6]
    [--only 'llmforge varlen compiled' ...] [--seconds 200] [--tiny]

A LLaMA of about 1.3 B parameters with random weights, bf16, packed rows of 4,096 random tokens in documents of real lengths
(document_lengths.json): llmforge's native engine with every attention kernel that runs here, compiled and not, with and
without recomputation, then a plain loop of transformers and one with Liger's kernels (both without documents apart). All have
float32 weights, autocast and fused AdamW. MFU counts model FLOPs alone: 6 per weight of layers and head and token, and 6 x
heads x (key width + value width) per visible key and layer; nothing recomputed. Each runs in a process of its own; one that
fails or takes too long does not cost the others their results. `--tiny` runs the same code on a CPU.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import results
import torch

from llmforge.backends.build import computes_in_bf16
from llmforge.backends.common.attention import available
from llmforge.backends.common.devices import gpu_device, head_chunk
from llmforge.backends.common.settings import Settings
from llmforge.backends.common.trainable import parse
from llmforge.backends.torch.engine import NativeEngine
from llmforge.train.batches import Groups, make_micro_batch
from llmforge.train.shape import read_shape
from llmforge.weights.directory import ModelDirectory

OLD_SHARE, WARM = 0.46, 2  # of 69,104 ids, 32,000 are old
LENGTHS = Path(__file__).parent / "document_lengths.json"


def make_model(asked: argparse.Namespace, target: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=asked.vocabulary,
        hidden_size=asked.width,
        intermediate_size=asked.width * 11 // 4,
        num_hidden_layers=asked.layers,
        num_attention_heads=asked.width // 64,
        num_key_value_heads=max(1, asked.width // 256),
        max_position_embeddings=asked.length,
        tie_word_embeddings=False,
    )
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    torch.set_default_device("cpu")
    model.save_pretrained(target)
    return target


def rows(asked: argparse.Namespace, count: int) -> list[Any]:
    """Rows of random tokens in documents of real lengths, of which one that a row cannot hold goes on in the next."""
    chance, lengths = np.random.default_rng(0), json.loads(LENGTHS.read_text())
    made, number, rest = [], 0, 0
    for _ in range(count):
        row: list[int] = []
        while (room := asked.length - sum(row)) > 0:
            if not rest:
                rest, number = lengths[number % len(lengths)], number + 1
            row.append(min(rest, room))
            rest -= row[-1]
        ids = chance.integers(0, asked.vocabulary, asked.length).astype(np.int32)
        made.append(
            SimpleNamespace(
                input_ids=ids, labels=ids, seq_lengths=np.array(row), seq_categories=["a"] * len(row)
            )
        )
    return made


def visible_keys(data: list[Any]) -> float:
    """Keys that a token sees, on average."""
    lengths = np.concatenate([row.seq_lengths for row in data]).astype(float)
    return float((lengths * (lengths + 1)).sum() / 2 / lengths.sum())


def timed(step: Any, count: int, device: torch.device) -> float:
    """Seconds of the median step after two to warm up."""
    seconds = []
    for number in range(count + WARM):
        began = time.perf_counter()
        step(number)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[WARM:]))


@dataclass
class Memory:
    """Bytes by part of a step: what is held when a part begins, and by how much its peak is above that.

    On a CPU, of the whole process (VmRSS and VmHWM of Linux), for rehearsals.
    """

    device: torch.device
    parts: dict[str, int] = field(default_factory=dict)

    def now(self, peak: bool = False) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:" if peak else "VmRSS:")[1].split()[0]) * 1024

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")
        before = self.now()
        yield
        self.parts[name] = max(self.parts.get(name, 0), self.now(peak=True) - before)


def memory_by_part(engine: NativeEngine, batch: Any, device: torch.device) -> dict[str, int]:
    """Of one more step of `engine`: held before it (weights and optimizer), and the peaks of its parts above what they found."""
    memory = Memory(device)
    held, head, update = memory.now(), engine.loss.head, engine._update

    def inside(name: str, run: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if name == "head and loss":
                memory.parts["activations at the head"] = memory.now() - held
            with memory.part(name):
                return run(*arguments)

        return call

    engine.loss.head, engine._update = inside("head and loss", head), inside("clipping and optimizer", update)  # type: ignore[method-assign]
    try:
        engine.train_step([batch], 1e-5, lambda *_: True)
    finally:
        engine.loss.head, engine._update = head, update  # type: ignore[method-assign]
    return {"weights and optimizer": held, **memory.parts}


def run_native(
    asked: argparse.Namespace, model: Path, data: list[Any], device: torch.device, **more: Any
) -> dict[str, Any]:
    old = int(asked.vocabulary * OLD_SHARE)
    groups = Groups(("a",), old)
    engine = NativeEngine(
        Settings(
            model=ModelDirectory(model),
            precision="bf16" if computes_in_bf16(device) else "fp32",
            trainable=parse("all"),
            old_rows=old,
            rows=asked.vocabulary,
            groups=groups.count,
            seed=0,
            head_chunk=head_chunk(asked.vocabulary, 2, device.type == "cpu"),
            device=str(device),
            **more,
        )
    )
    batches = [
        make_micro_batch(data[i : i + asked.micro], asked.micro, asked.length, groups, cross_document=False)
        for i in range(0, len(data), asked.micro)
    ]
    losses: list[float] = []

    def step(number: int) -> None:
        losses.append(engine.train_step([batches[number % len(batches)]], 1e-5, lambda *_: True).loss)

    seconds = timed(step, asked.steps, device)
    peak = Memory(device).now(peak=True)
    parts = memory_by_part(engine, batches[0], device)
    return {"seconds": seconds, "first_loss": losses[0], "peak_bytes": peak, "memory": parts}


def run_loop(
    asked: argparse.Namespace,
    model: Path,
    data: list[Any],
    device: torch.device,
    liger: bool,
    recomputed: bool,
) -> dict[str, Any]:
    """A loop of transformers as one writes it; with Liger's kernels where `liger`."""
    from transformers import AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM
    if liger:
        from liger_kernel.transformers import AutoLigerKernelForCausalLM

        kind = AutoLigerKernelForCausalLM
    net = kind.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa").to(device)
    net.train()
    if recomputed:
        net.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(number: int) -> None:
        start = number * asked.micro % len(data)
        batch = np.stack([row.input_ids for row in data[start : start + asked.micro]])
        ids = torch.tensor(batch).long().to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bf16(device)):
            loss = net(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    seconds = timed(step, asked.steps, device)
    return {"seconds": seconds, "peak_bytes": Memory(device).now(peak=True)}


def candidates(device: torch.device) -> dict[str, dict[str, Any]]:
    """What runs by its label, in order of worth."""
    dtype = torch.bfloat16 if computes_in_bf16(device) else torch.float32
    kernels = available(device, dtype)
    first = kernels[0]
    found: dict[str, dict[str, Any]] = {
        f"llmforge {first} compiled": {"attention": first, "compile": True},
        f"llmforge {first}": {"attention": first},
        "transformers loop": {"liger": False, "recomputed": False},
        "Liger loop": {"liger": True, "recomputed": False},
        f"llmforge {first} compiled recomputed": {
            "attention": first,
            "compile": True,
            "gradient_checkpointing": True,
        },
        f"llmforge {first} recomputed": {"attention": first, "gradient_checkpointing": True},
    }
    for kernel in kernels[1:]:
        found[f"llmforge {kernel} compiled"] = {"attention": kernel, "compile": True}
        found[f"llmforge {kernel}"] = {"attention": kernel}
    found["transformers loop recomputed"] = {"liger": False, "recomputed": True}
    found["Liger loop recomputed"] = {"liger": True, "recomputed": True}
    return found


def child(asked: argparse.Namespace, model: Path, label: str, device: torch.device) -> None:
    """Runs one candidate and writes its result."""
    data, options = rows(asked, asked.micro * 4), candidates(device)[label]
    loop = "liger" in options
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    found = (run_loop if loop else run_native)(asked, model, data, device, **options)
    shape = read_shape(ModelDirectory(model))
    speed = asked.micro * asked.length / found["seconds"]
    # A loop without documents apart computes more for attention; what it achieves counts, too.
    flops = speed * shape.flops_per_token("all", (asked.length + 1) / 2 if loop else visible_keys(data))
    known = gpu_device(name, 0) if device.type == "cuda" else None
    figures = {
        **found,
        "device": name,
        "parameters": shape.parameters,
        "vocabulary": asked.vocabulary,
        "tokens_per_step": asked.micro * asked.length,
        "visible_keys": visible_keys(data),
        "tokens_per_second": speed,
        "model_flops": flops,
        "mfu": flops / known.bf16 if known else None,
    }
    results.write("training", f"{label}, {asked.vocabulary:,} tokens", **figures)
    shown = f"{figures['mfu']:.1%} MFU" if known else f"{flops / 1e9:.1f} GFLOP/s"
    print(f"{label:40} {speed:>10,.0f} tokens/s {shown:>16} {found['peak_bytes'] / 1e9:>6.1f} GB", flush=True)
    for part, size in found.get("memory", {}).items():
        print(f"    {part:28} {size / 1e9:>8.2f} GB")


def parse_words() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {"vocabulary": 69_104, "layers": 22, "width": 2048, "length": 4096, "micro": 4, "steps": 6}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seconds", type=float, default=600, help="for all of them")
    parser.add_argument("--limit", type=float, default=80, help="seconds for each")
    parser.add_argument("--only", nargs="*", help="labels of those to run")
    parser.add_argument("--first", type=int, help="run so many of the candidates")
    parser.add_argument("--tiny", action="store_true", help="a model of 2 layers of width 64, on a CPU")
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.tiny:
        vars(asked).update({"layers": 2, "width": 64, "length": 256, "micro": 2, "steps": 2})
        asked.vocabulary = asked.vocabulary // 64
    return asked


def main() -> None:
    asked = parse_words()
    device = torch.device("cuda" if torch.cuda.is_available() and not asked.tiny else "cpu")
    if asked.child:
        child(asked, asked.model, asked.child, device)
        return
    ends = time.monotonic() + asked.seconds
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as work:
        model = make_model(asked, Path(work) / "model")
        if device.type == "cuda":
            torch.cuda.empty_cache()
        labels = list(candidates(device))
        for label in [one for one in labels if not asked.only or one in asked.only][: asked.first]:
            left = min(asked.limit, ends - time.monotonic())
            name = f"{label}, {asked.vocabulary:,} tokens"
            if left < 5:
                results.write("training", name, failed="no time was left")
                continue
            # The child computes the small sizes from --tiny again.
            command = [sys.executable, __file__, *sys.argv[1:], "--child", label, "--model", str(model)]
            failed = results.run(command, left, group=False)
            if failed:
                results.write("training", name, failed=failed)
                print(f"{label:40} failed: {failed[:160]}", flush=True)


if __name__ == "__main__":
    main()
