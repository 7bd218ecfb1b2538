"""The progress bar of the main rank."""

from contextlib import ExitStack

from llmforge.console import progress
from llmforge.train.callbacks.base import Callback, Stage, Step


class Progress(Callback):
    stage = Stage.WRITES

    def start(self) -> None:
        self.stack = ExitStack()
        if self.run.setup.world.is_main:
            steps = self.run.total - self.run.position.step
            self.advance = self.stack.enter_context(progress("training", steps, "steps"))

    def after_step(self, step: Step) -> bool:
        if self.run.setup.world.is_main:
            speed = step.figures["tokens_per_second"]
            self.advance(1, f"loss {step.result.loss:.4f}  {speed:,.0f} tokens/s")
        return False

    def close(self) -> None:
        self.stack.close()
