"""What sharing a training among processes costs: DDP and FSDP2 beside processes that know nothing of each other.

    python benchmarks/parallel.py [--processes 2] [--steps 4] [--rows 2]

The model and rows of benchmarks/training.py. Each process computes `--rows` rows a step on one thread; alone means
that as many processes do so at the same time without talking, so that caches and memory are shared alike. A step's
time is that of the slowest process, the median of the steps after the first. GB to load is how far making the engine
raises a process's peak memory. Communication is gloo over loopback.
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

from training import ADDED, LENGTH, grown_model, packed_rows, precision

OLD = 49_152


def child(plugin: str, work: Path, rows: int, steps: int) -> None:
    """One process: prints its seconds per step, CPU seconds per step and peak memory as JSON."""
    import torch

    torch.set_num_threads(1)
    from llmforge.engine.native import NativeEngine, Settings
    from llmforge.engine.native.parallel import DDPEngine, FSDPEngine
    from llmforge.engine.processes import join_processes, leave_processes
    from llmforge.engine.trainable import parse
    from llmforge.train.batches import Groups, make_micro_batch

    world = join_processes(torch.device("cpu"))
    groups = Groups(("zh",), OLD)
    settings = Settings(
        model=grown_model(work),
        precision=precision(),
        trainable=parse("all"),
        old_rows=OLD,
        rows=OLD + ADDED,
        groups=groups.count,
        seed=0,
    )
    program = peak_memory()
    engine = {"alone": NativeEngine, "ddp": DDPEngine, "fsdp": FSDPEngine}[plugin](settings, world)
    loaded = peak_memory() - program
    mine = packed_rows(rows * steps * world.size)[world.rank :: world.size]
    walls, cpus = [], []
    for start in range(0, len(mine), rows):
        batch = make_micro_batch(mine[start : start + rows], rows, LENGTH, groups, cross_document=False)
        began = (time.perf_counter(), time.process_time())
        engine.train_step([batch], 1e-5, lambda loss, norm: True)
        walls.append(time.perf_counter() - began[0])
        cpus.append(time.process_time() - began[1])
    print(json.dumps({"wall": walls, "cpu": cpus, "loaded": loaded, "peak": peak_memory()}), flush=True)
    leave_processes()


def peak_memory() -> int:
    """Peak bytes of memory of this process."""
    # Not getrusage, which begins with the peak of the process that started this one.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def measure(plugin: str, processes: int, words: list[str]) -> dict[str, float]:
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
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    slowest = [max(one["wall"][i] for one in found) for i in range(1, len(found[0]["wall"]))]
    computed = [statistics.mean(one["cpu"][i] for one in found) for i in range(1, len(found[0]["cpu"]))]
    return {
        "seconds": statistics.median(slowest),
        "cpu_seconds": statistics.median(computed),
        "loaded_gb": max(one["loaded"] for one in found) / 1e9,
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
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child, asked.work, asked.rows, asked.steps)
        return
    asked.work.mkdir(parents=True, exist_ok=True)
    grown_model(asked.work)
    words = ["--work", str(asked.work), "--rows", str(asked.rows), "--steps", str(asked.steps)]
    print(
        "| | seconds per step | overhead | CPU seconds per process | overhead | GB to load | peak GB per process |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    alone = None
    for plugin in ("alone", "ddp", "fsdp"):
        found = measure(plugin, asked.processes, words)
        alone = alone or found
        wall, cpu = (found[key] / alone[key] - 1 for key in ("seconds", "cpu_seconds"))
        print(
            f"| {plugin} | {found['seconds']:.2f} | {wall:+.0%} | {found['cpu_seconds']:.2f} | {cpu:+.0%} | "
            f"{found['loaded_gb']:.2f} | {found['peak_gb']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
