"""When checkpoints are written, and the final model."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llmforge.errors import UserError
from llmforge.train import branch
from llmforge.train.callbacks.base import Callback, Run, Stage, Step
from llmforge.train.callbacks.metrics import Metrics
from llmforge.train.checkpoint import Contents, link_model
from llmforge.train.save_dir import MODELS
from llmforge.train.saver import Saver


class Checkpoints(Callback):
    """`--save-interval`, `--save-seconds`, the ends of epochs and of the run; `Saver` writes them."""

    stage = Stage.SAVES
    saver: Saver

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._saved_at, self._save_by_time = time.monotonic(), False

    def start(self) -> None:
        config, setup = self.run.config, self.run.setup
        self.saver = Saver(
            config.output, config.keep_last, config.background_save, setup.world.is_main, setup.resumed
        )

    def votes(self, step: Step) -> np.ndarray:
        every = self.run.config.save_seconds
        due = every is not None and time.monotonic() - self._saved_at >= every
        return np.array([due, self._is_gone()], dtype=np.float64)

    def agreed(self, sums: np.ndarray) -> None:
        self._save_by_time = bool(sums[0])
        if sums[1]:
            raise self._gone()

    def report(self, figures: Mapping[str, Any]) -> None:
        config, position = self.run.config, self.run.position
        interval, step = config.save_interval, position.step
        end_of_epoch = position.sample == 0 and not config.skip_save_each_epoch
        due = end_of_epoch or self._save_by_time or bool(interval and step % interval == 0)
        if due and self.run.last_save[0] < step < self.run.total and not self.run.stopping:
            self._save(last=False)

    def rolled_back(self, checkpoint: Path, state: Any) -> None:
        self.run.last_save = (self.run.position.step, checkpoint)

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole, once the save under way has ended; None where there is none."""
        self.saver.wait()
        path = self.saver.newest
        return None if path is None or branch.damage(path) else path

    def finish(self) -> None:
        run = self.run
        self._save_last()
        _step, path = run.last_save
        if run.stopping and path is None:
            run.say(f"stopped by {run.stopping} before the first step; run the same command again to start.")
        elif run.stopping:
            run.say(
                f"stopped by {run.stopping} after step {run.position.step}; --load-checkpoint latest resumes."
            )
        elif run.setup.world.is_main and path:
            for name in MODELS:
                if (path / name).is_dir():
                    link_model(path / name, run.config.output / name)
        self.saver.close()

    def explain(self, error: Exception) -> Exception | None:
        ours = isinstance(error, UserError) and self.run.setup.world.is_main and self._is_gone()
        return self._gone() if ours else None

    def _save_last(self) -> None:
        step, path = self.run.last_save
        if self.run.position.step == step:
            self.saver.wait()
            if step == 0 or (path and branch.damage(path) is None):
                return
        self._save(last=True)

    def _save(self, *, last: bool) -> None:
        run, setup, position = self.run, self.run.setup, self.run.position
        path = run.config.output / f"epoch-{position.epoch}_step-{position.step}"
        outputs = {"vocabulary": asdict(setup.vocabulary), "tokenizer": setup.tokenizer.fingerprint}
        contents = Contents(setup.model_files, outputs, run.states(), position.step, run.schedule)
        run.get(Metrics).sync()
        save = self.saver.save_last if last else self.saver.save
        save(path, run.engine.snapshot(), contents)
        run.last_save, self._saved_at = (position.step, path), time.monotonic()

    def _is_gone(self) -> bool:
        return self.run.setup.world.is_main and self.saver.is_gone()

    def _gone(self) -> UserError:
        return UserError(
            f"--output {self.run.config.output} was deleted or moved during the training, which ended after step "
            f"{self.run.position.step} because nothing can be saved."
        )
