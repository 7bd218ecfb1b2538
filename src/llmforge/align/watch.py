"""What a training on preferences tells, and what ends it: metrics, guards, signals."""

import json
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from llmforge.errors import InterruptionError, UserError
from llmforge.train.callbacks.metrics import Board, Lines, cut_metrics
from llmforge.train.save_dir import METRICS

TENSORBOARD = "tensorboard"
# No figures of a step; and TRL counts tokens from a resume on.
NO_FIGURES = ("epoch", "step", "num_tokens")
KL = ("kl", "objective/kl_per_token")


class Watch(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Writes a line of metrics.jsonl and TensorBoard's figures for every step, and refuses a loss, a gradient or figures that are
    not finite, and a KL divergence above `max_kl`. A signal ends the run after the step under way: `stopped` is its name.
    """

    def __init__(
        self, output: Path, max_kl: float | None, resumable: bool, advance: Callable[..., None]
    ) -> None:
        self.output, self.max_kl, self.resumable, self.advance = output, max_kl, resumable, advance
        self.stopped: str | None = None
        self.done = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        file = self.output / METRICS
        self.done = state.global_step
        cut_metrics(file, self.done)
        self.lines, self.board = Lines(file), Board(self.output / TENSORBOARD, self.done)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if not logs or "train_runtime" in logs:
            return
        figures = {name: float(value) for name, value in logs.items() if name not in NO_FIGURES}
        self._check(figures, state.global_step)
        epoch = {"epoch": logs["epoch"]} if "epoch" in logs else {}
        self.lines.write(json.dumps({"step": state.global_step, **epoch, **figures}))
        self.board.write(figures, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance(float(state.global_step - self.done))
        self.done = state.global_step
        if self.stopped and state.global_step < state.max_steps:
            if not self.resumable:
                raise InterruptionError(
                    f"{self.stopped} stopped the training after step {self.done:,} of {state.max_steps:,}; run the same command "
                    "again, which begins again."
                )
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.lines.sync()

    def close(self) -> None:
        if hasattr(self, "lines"):
            self.lines.close()
            self.board.close()

    def _check(self, figures: dict[str, float], step: int) -> None:
        bad = next((name for name, value in figures.items() if not math.isfinite(value)), None)
        if bad:
            raise UserError(
                f"step {step}: {bad} is {figures[bad]}; nothing was written. Lower --learning-rate, or look at the data."
            )
        kl = next((figures[name] for name in KL if name in figures), None)
        if kl is not None and self.max_kl is not None and kl > self.max_kl:
            raise UserError(
                f"step {step}: the KL divergence from the starting model is {kl:.4g} nats per token, above --max-kl {self.max_kl:g}; "
                "nothing was written. Lower --learning-rate, raise --beta, or stop earlier with --max-steps."
            )

    def summary(self) -> dict[str, Any]:
        """`last`, the figures of the last step, and `largest_kl` of all steps, where it is measured; those before a resume count."""
        lines = [
            json.loads(line) for line in (self.output / METRICS).read_text(encoding="utf-8").splitlines()
        ]
        kl = [line[name] for line in lines for name in KL if name in line]
        last = {name: value for name, value in lines[-1].items() if name not in NO_FIGURES} if lines else {}
        return {"last": last, **({"largest_kl": max(kl)} if kl else {})}

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the run in good order inside; a second SIGINT at once."""

        def stop(number: int, _frame: FrameType | None) -> None:
            if self.stopped and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stopped = signal.Signals(number).name

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
