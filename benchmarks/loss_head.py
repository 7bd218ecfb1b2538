"""Output head and cross entropy: llmforge's, torch's linear_cross_entropy and the plain way, on one thread of a CPU.

    python benchmarks/loss_head.py [--tokens 1024] [--width 576] [--vocabulary 69152] [--dtype float32]

Each runs in a process of its own: CPU seconds of a forward and backward pass (the second of two), how far the peak of
memory rises during it, and the largest difference of the gradients from the plain ones. torch's needs torch 2.13.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

NAMES = ("plain", "llmforge", "torch")


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from torch.nn import functional

    from llmforge.backends.common.head import chunked_cross_entropy

    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    hidden = torch.randn(options.tokens, options.width, dtype=dtype).requires_grad_()
    weight = (torch.randn(options.vocabulary, options.width) / options.width**0.5).requires_grad_()
    targets = torch.randint(options.vocabulary, (options.tokens,))

    def loss() -> torch.Tensor:
        if name == "llmforge":
            return chunked_cross_entropy(hidden, weight, None, targets, dtype=dtype, chunk=512)[0]
        lowered = weight.to(dtype)
        if name == "torch":
            chunked = torch.nn.LinearCrossEntropyOptions()
            return functional.linear_cross_entropy(
                hidden, lowered, targets, reduction="sum", options=chunked
            ).float()
        return functional.cross_entropy((hidden @ lowered.T).float(), targets, reduction="sum")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = 0.0
    for _ in range(2):
        hidden.grad = weight.grad = None
        start = time.process_time()
        value = loss()
        value.backward()
        seconds = time.process_time() - start
    assert hidden.grad is not None
    assert weight.grad is not None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "loss": float(value),
        "seconds": seconds,
        "megabytes": peak / 1024,
        "hidden": hidden.grad.float()[:8].flatten().tolist(),
        "weight": weight.grad[:8].flatten().tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, default=69152)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options)))
        return
    print(
        "| | CPU seconds | peak MB | loss | largest difference of gradients |\n| --- | ---: | ---: | ---: | ---: |"
    )
    plain: dict[str, Any] = {}
    for name in NAMES:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        plain = plain or found
        apart = max(
            abs(a - b) for key in ("hidden", "weight") for a, b in zip(found[key], plain[key], strict=True)
        )
        cells = (
            f"{found['seconds']:.2f}",
            f"{found['megabytes']:,.0f}",
            f"{found['loss']:.3f}",
            f"{apart:.1e}",
        )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
