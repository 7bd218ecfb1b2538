"""Where the time of a training step goes on a CPU: one step of SmolLM2-135M with 20,000 pieces added, by part.

    python benchmarks/step_profile.py [--rows 2] [--threads 1]

Rows of 512 tokens as in training.py, one micro-batch, float32 or bf16 as the machine computes. One step goes before, the
second is looked at by torch.profiler: self time of the operations on the CPU, those of the head and the loss apart. Shares
hold on a busy machine, seconds do not.
"""

import argparse
import tempfile
from pathlib import Path
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from training import ADDED, LENGTH, grown_model, packed_rows, precision

from llmforge.backends.common import model as with_loss
from llmforge.backends.common.settings import Settings
from llmforge.backends.common.trainable import parse
from llmforge.backends.torch.engine import NativeEngine
from llmforge.train.batches import Groups, make_micro_batch
from llmforge.weights.directory import ModelDirectory

OLD_ROWS = 49_152
HEAD = "head and loss"
PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "mkldnn"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "AdamW": ("_fused_adamw", "adamw"),
    "gradient norm": ("_foreach_norm", "linalg_vector_norm"),
    "copies and casts": ("aten::copy_", "aten::_to_copy", "aten::clone", "aten::zero_", "aten::fill_"),
    "embedding": ("embedding",),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as work:
        seconds = measure(Path(work), asked.rows)
    total = sum(seconds.values())
    print(
        f"{asked.rows} rows of {LENGTH}, {precision()}, {asked.threads} threads: {total:.2f} s of operations\n"
    )
    print("| part | share |\n|---|---:|")
    for name, spent in sorted(seconds.items(), key=lambda one: -one[1]):
        print(f"| {name} | {spent / total:.1%} |")


def measure(work: Path, rows: int) -> dict[str, float]:
    """Seconds of self time by part."""
    groups = Groups(("zh",), OLD_ROWS)
    engine = NativeEngine(
        Settings(
            model=ModelDirectory(grown_model(work)),
            precision=precision(),
            trainable=parse("all"),
            old_rows=OLD_ROWS,
            rows=OLD_ROWS + ADDED,
            groups=groups.count,
            seed=0,
        )
    )
    batch = make_micro_batch(packed_rows(rows), rows, LENGTH, groups, cross_document=False)
    plain = with_loss.chunked_cross_entropy

    def marked(*arguments: torch.Tensor, **more: object) -> tuple[torch.Tensor, torch.Tensor]:
        with record_function(HEAD):
            return plain(*arguments, **more)  # type: ignore[arg-type]

    with mock.patch.object(with_loss, "chunked_cross_entropy", marked):
        engine.train_step([batch], 1e-5, lambda *_: True)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            engine.train_step([batch], 1e-5, lambda *_: True)
    seconds: dict[str, float] = {}
    for event in profiled.events():
        if event.device_type != DeviceType.CPU:
            continue
        part, above = part_of(event.name), event
        while above is not None:  # the head computes its gradients in the forward pass
            part = HEAD if above.name == HEAD else part
            above = above.cpu_parent
        seconds[part] = seconds.get(part, 0.0) + event.self_cpu_time_total / 1e6
    return seconds


def part_of(operation: str) -> str:
    for part, names in PARTS.items():
        if any(name in operation for name in names):
            return part
    return "norms, gates, sums and the rest"


if __name__ == "__main__":
    main()
