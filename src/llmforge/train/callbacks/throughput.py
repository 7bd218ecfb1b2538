"""Speed and memory of steps and of the run."""

import time
from typing import Any

import numpy as np

from llmforge.train.callbacks.base import Callback, Run, Step


class Throughput(Callback):
    """Tokens, UTF-8 bytes and model FLOPs per second of all processes, and the peak of this rank's memory."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.bytes = 0
        self.loss: float | None = None

    def start(self) -> None:
        self.began, self.tokens_before = time.monotonic(), self.run.counters["tokens"]

    def votes(self, step: Step) -> np.ndarray:
        return np.array([step.batch.bytes], dtype=np.float64)

    def agreed(self, sums: np.ndarray) -> None:
        self.bytes = int(sums[0])

    def after_step(self, step: Step) -> bool:
        self.loss = step.result.loss
        seconds = time.monotonic() - step.began
        speed = step.result.valid_tokens / seconds
        flops, peak = speed * self.run.setup.flops_per_token, self.run.setup.peak_flops
        step.figures.update(
            bytes=self.bytes,
            seconds=seconds,
            tokens_per_second=speed,
            model_flops_per_second=flops,
            **({} if peak is None else {"model_flops_utilization": flops / peak}),
            bytes_per_second=self.bytes / seconds,
            peak_memory_bytes=self.run.engine.peak_memory(),
        )
        return False

    def summary(self) -> dict[str, Any]:
        seconds = time.monotonic() - self.began
        return {
            "final_loss": self.loss,
            "tokens_per_second": (self.run.counters["tokens"] - self.tokens_before) / seconds,
            "peak_memory_bytes": self.run.engine.peak_memory(),
        }
