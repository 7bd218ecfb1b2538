"""What sharing a training among processes costs: DDP and FSDP2 beside processes that know nothing of each other.

    python benchmarks/parallel.py [--processes 2] [--steps 4] [--rows 2] [--memory]

The model and rows of benchmarks/training.py. Each process computes `--rows` rows a step on one thread; alone means
that as many processes do so at the same time without talking, so that caches and memory are shared alike. A step's
time is that of the slowest process, the median of the steps after the first. Communication is gloo over loopback.

The second table is host memory: how far the peak of a process rises while the weights are loaded, and until a checkpoint's
model is written too. One layer is trained, so that its optimizer does not hide that.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from training import ADDED, LENGTH, grown_model, packed_rows, precision

from llmforge.weights.directory import ModelDirectory

OLD = 49_152


def child(plugin: str, work: Path, rows: int, steps: int, memory: bool) -> None:
    """One process: prints its seconds per step, CPU seconds per step and peak memory as JSON; with `memory`, its peak
    after loading and after saving.
    """
    import torch

    torch.set_num_threads(1)
    from llmforge.backends.common.processes import join_processes, leave_processes
    from llmforge.backends.common.trainable import parse
    from llmforge.backends.torch.engine import NativeEngine, Settings
    from llmforge.backends.torch.parallel import DDPEngine, FSDPEngine
    from llmforge.train.batches import Groups, make_micro_batch

    world = join_processes(torch.device("cpu"))
    groups = Groups(("zh",), OLD)
    settings = Settings(
        model=ModelDirectory(grown_model(work)),
        precision=precision(),
        trainable=parse("0" if memory else "all"),
        old_rows=OLD,
        rows=OLD + ADDED,
        groups=groups.count,
        seed=0,
    )
    make = {"alone": NativeEngine, "ddp": DDPEngine, "fsdp": FSDPEngine}[plugin]
    if memory:
        import torch.distributed.fsdp
        import transformers.models.llama.modeling_llama  # noqa: F401

        program = peak_memory()
        engine = make(settings, world)
        loaded = peak_memory() - program
        with tempfile.TemporaryDirectory(dir=work) as directory:
            engine.snapshot().write_model(Path(directory))
        print(json.dumps({"loaded": loaded, "saved": peak_memory() - program}), flush=True)
        leave_processes()
        return
    engine = make(settings, world)
    mine = packed_rows(rows * steps * world.size)[world.rank :: world.size]
    walls, cpus = [], []
    for start in range(0, len(mine), rows):
        batch = make_micro_batch(mine[start : start + rows], rows, LENGTH, groups, cross_document=False)
        began = (time.perf_counter(), time.process_time())
        engine.train_step([batch], 1e-5, lambda loss, norm: True)
        walls.append(time.perf_counter() - began[0])
        cpus.append(time.process_time() - began[1])
    print(json.dumps({"wall": walls, "cpu": cpus, "peak": peak_memory()}), flush=True)
    leave_processes()


def peak_memory() -> int:
    """Peak bytes of memory of this process."""
    # Not getrusage, which begins with the peak of the process that started this one.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def run_processes(plugin: str, processes: int, words: list[str]) -> list[dict[str, Any]]:
    """What each of `processes` children printed."""
    command = [sys.executable, __file__, "--child", plugin, *words]
    port = str(29_500 + os.getpid() % 1000)
    started = []
    for rank in range(processes):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        if plugin == "alone":
            place = {"RANK": "0", "WORLD_SIZE": "1"}
        environment = {
            **os.environ,
            **place,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
        }
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate()[0] for process in started]
    assert not any(process.returncode for process in started)
    return [json.loads(text.splitlines()[-1]) for text in printed]


def measure(plugin: str, processes: int, words: list[str]) -> dict[str, float]:
    found = run_processes(plugin, processes, words)
    slowest = [max(one["wall"][i] for one in found) for i in range(1, len(found[0]["wall"]))]
    computed = [statistics.mean(one["cpu"][i] for one in found) for i in range(1, len(found[0]["cpu"]))]
    return {
        "seconds": statistics.median(slowest),
        "cpu_seconds": statistics.median(computed),
        "peak_gb": max(one["peak"] for one in found) / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "llmforge-benchmark")
    parser.add_argument("--memory", action="store_true", help="only the second table")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child, asked.work, asked.rows, asked.steps, asked.memory)
        return
    asked.work.mkdir(parents=True, exist_ok=True)
    grown_model(asked.work)
    words = ["--work", str(asked.work), "--rows", str(asked.rows), "--steps", str(asked.steps)]
    if not asked.memory:
        show_speed(asked.processes, words)
    print("| | GB to load | GB to load and save |")
    print("|---|---:|---:|")
    for plugin in ("ddp", "fsdp"):
        ranks = run_processes(plugin, asked.processes, [*words, "--memory"])
        figures = [" and ".join(f"{rank[key] / 1e9:.2f}" for rank in ranks) for key in ("loaded", "saved")]
        print(f"| {plugin} | {' | '.join(figures)} |", flush=True)


def show_speed(processes: int, words: list[str]) -> None:
    print("| | seconds per step | overhead | CPU seconds per process | overhead | peak GB per process |")
    print("|---|---:|---:|---:|---:|---:|")
    alone = None
    for plugin in ("alone", "ddp", "fsdp"):
        found = measure(plugin, processes, words)
        alone = alone or found
        wall, cpu = (found[key] / alone[key] - 1 for key in ("seconds", "cpu_seconds"))
        print(
            f"| {plugin} | {found['seconds']:.2f} | {wall:+.0%} | {found['cpu_seconds']:.2f} | {cpu:+.0%} | "
            f"{found['peak_gb']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
