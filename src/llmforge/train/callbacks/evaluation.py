"""Bits per byte on `--eval-data` and accuracies on `--eval-tasks`, also of the average of `--ema`: before the first step, every
`--eval-interval` steps, and after the last one.
"""

from typing import Any

from llmforge.train.callbacks.base import Callback, Run, Stage, Step


class Evaluation(Callback):
    """Where a run is asked to stop meanwhile, the figures of the step go into the checkpoint instead of
    metrics.jsonl; the resumed run measures and writes them.
    """

    stage = Stage.MEASURES
    name = "unmeasured"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.unmeasured: dict[str, Any] | None = None

    def start(self) -> None:
        measured = self.run.setup.holdout or self.run.setup.questions
        first = {"step": 0} if self.run.position.step == 0 and measured else None
        figures = self.unmeasured or first
        if figures and not self._measure(figures):
            self.run.report(figures)

    def after_step(self, step: Step) -> bool:
        every, number = self.run.config.eval_interval, self.run.position.step
        due = number == self.run.total or bool(every and number % every == 0)
        return due and self._measure(step.figures)

    def rolled_back(self, checkpoint: Any, state: Any) -> None:
        self.unmeasured = None

    def state_dict(self) -> dict[str, Any] | None:
        return self.unmeasured

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        self.unmeasured = state

    def _measure(self, figures: dict[str, Any]) -> bool:
        """Adds the measurement to `figures`. True where the run was asked to stop before its end."""
        self.unmeasured = None
        found = self._measured("")
        # Before the first step the average is the weights.
        if found and self.run.config.retention.ema is not None and self.run.position.step:
            with self.run.engine.averaged():
                average = self._measured(" by the moving average")
            found = average and found | {f"ema_{name}": value for name, value in average.items()}
        if found is None:
            self.unmeasured = figures  # the run that resumes this one measures
            return True
        figures |= found
        return False

    def _measured(self, whose: str) -> dict[str, Any] | None:
        """What the weights in the engine give; None where the run was asked to stop meanwhile."""
        run, found = self.run, dict[str, Any]()
        if run.setup.holdout:
            values = run.setup.holdout.measure(run.engine, run.config, run.stop_is_asked)
            if values is None:
                return None
            run.say(
                f"step {run.position.step}: {values['all']:.4f} bits per byte on the held-out data{whose}."
            )
            found["holdout_bits_per_byte"] = values
        if run.setup.questions:
            answers = run.setup.questions.measure(run.engine, run.stop_is_asked)
            if answers is None:
                return None
            for name, value in answers["task_accuracy"].items():
                error = answers["task_stderr"].get(name)
                margin = f" ± {100 * error:.1f}" if error is not None else ""
                run.say(
                    f"step {run.position.step}: {100 * value:.1f}{margin} per cent of {name} right{whose}."
                )
            found |= answers
        return found
