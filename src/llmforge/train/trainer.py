"""The trainer: one engine call per optimizer step. Everything else around a step is a callback."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmforge.console import say, warn
from llmforge.train.batches import MicroBatches
from llmforge.train.callbacks import CALLBACKS, Callback, Step
from llmforge.train.callbacks.base import AnyCallback
from llmforge.train.figures import group_means
from llmforge.train.options import TrainOptions
from llmforge.train.prefetch import Batches
from llmforge.train.resume import check_steps, keep_rows, load_callbacks, load_engine, load_sampler
from llmforge.train.sampler import Sampler
from llmforge.train.save_dir import MODELING
from llmforge.train.schedule import make_schedule
from llmforge.train.setup import Ranks, Setup, announce, prepare_save_dir
from llmforge.train.states import COUNTERS, Position, states_text


class Trainer:
    """One training, from its weights to its final model; `llmforge.train.callbacks.base.Run` to its callbacks."""

    def __init__(self, config: TrainOptions, setup: Setup, ranks: Ranks) -> None:
        self.config, self.setup, self.ranks = config, setup, ranks
        self.engine, self.started = setup.engine, ranks.began
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.asked_to_stop: str | None = None
        self.stopping: str | None = None
        self.last_save: tuple[int, Path | None] = (0, None)
        self.sampler = Sampler(setup.data, config.seed, config.weights())
        rows = config.micro_batch_size * config.gradient_accumulation_steps * self.engine.world.data_size
        self.split = MicroBatches(config.micro_batch_size, rows)
        self.callbacks: list[Callback] = [kind(self) for kind in CALLBACKS]
        self._read_up_to(0, self.sampler.state_dict())
        if setup.resumed:
            self._resume(setup.resumed)
        per_epoch = -(-len(self.sampler) // self.split.rows_per_step)
        self.total = min(config.num_epochs * per_epoch, config.max_steps or 1 << 62)
        self.schedule = make_schedule(
            config.schedule, config.learning_rate, config.min_lr_ratio, config.warmup_steps, self.total
        )
        if setup.resumed:
            check_steps(setup.resumed, self.position.step, self.total, self.schedule, config, self.say)
        self.batches = Batches(config, setup, self.sampler, self.split)

    def _resume(self, path: Path) -> None:
        states = load_engine(self.engine, path, self.say)
        load_callbacks(self.callbacks, path, states)
        self.counters, self.last_save = states.counters, (states.position.step, path)
        load_sampler(self.sampler, path, states, self.setup.data.fingerprint, self.config, self.say)
        self._read_up_to(states.position.step, self.sampler.state_dict())
        self.split = keep_rows(states, self.split, self.ranks.world.size, self.say)

    def _read_up_to(self, step: int, sampled: Mapping[str, Any]) -> None:
        """`sampled` is the sampler's state behind `step`; the sampler itself may be one batch ahead."""
        self.position, self.sampled = Position(step, sampled["epoch"], sampled["sample"]), sampled

    # The loop.

    def run(self) -> dict[str, Any] | None:
        """Trains to the end and returns the metrics of the run; None where it was asked to stop before."""
        prepare_save_dir(self.config, self.setup)
        announce(self.config, self.setup, self.sampler, self.split.rows_per_step, self.total)
        started: list[Callback] = []
        try:
            with self.ranks.processes.naming_the_lost():
                for callback in self.callbacks:
                    callback.start()
                    started.append(callback)
                while not self._is_done():
                    self._step()
                for callback in self.callbacks:
                    callback.finish()
        except Exception as error:
            for callback in started:
                if better := callback.explain(error):
                    raise better from error
            raise
        finally:
            self.batches.close()
            for callback in reversed(started):
                callback.close()
        if self.stopping:
            return None
        metrics = {"steps": self.position.step, **self.counters}
        for callback in self.callbacks:
            metrics |= callback.summary()
        return {**metrics, "plugin": self.engine.name, "processes": self.ranks.world.size}

    def _is_done(self) -> bool:
        through = self.position.step >= self.total or self.position.epoch >= self.config.num_epochs
        return through or self.stopping is not None

    def _step(self) -> None:
        began, rate = time.monotonic(), self.schedule.rate(self.position.step)
        batch = self.batches.next(more=self.position.step + 1 < self.total)
        result = self.engine.train_step(batch.micro_batches, rate, self._accept)
        self._read_up_to(self.position.step + 1, batch.after)
        self.counters["tokens"] += result.valid_tokens
        figures = {
            **asdict(self.position),
            "loss": result.loss,
            **group_means(result.groups, self.setup.groups),
            "learning_rate": rate,
            "gradient_norm": result.gradient_norm,
            "applied": result.applied,
            "tokens": result.valid_tokens,
        }
        step = Step(batch, result, began, figures)
        self._agree(step)
        if not any(callback.after_step(step) for callback in self.callbacks):
            self.report(figures)

    def _accept(self, loss: float, gradient_norm: float) -> bool:
        return all(callback.accept(loss, gradient_norm) for callback in self.callbacks)

    def _agree(self, step: Step) -> None:
        """Collective, once a step: adds up what ranks must know of each other."""
        votes = [callback.votes(step) for callback in self.callbacks]
        sums = self._total([self._wish_to_stop(), *votes])
        self._stop_if(bool(sums[0][0]))
        for callback, own in zip(self.callbacks, sums[1:], strict=True):
            callback.agreed(own)

    def _total(self, values: list[np.ndarray]) -> list[np.ndarray]:
        summed = self.engine.total(torch.from_numpy(np.concatenate(values))).numpy()
        return np.split(summed, np.cumsum([len(one) for one in values])[:-1])

    def _wish_to_stop(self) -> np.ndarray:
        for callback in self.callbacks:
            callback.poll()
        return np.array([self.asked_to_stop is not None], dtype=np.float64)

    def _stop_if(self, asked: bool) -> None:
        self.stopping = (self.asked_to_stop or "another process") if asked else None

    # What callbacks use.

    def get(self, kind: type[AnyCallback]) -> AnyCallback:
        return next(callback for callback in self.callbacks if isinstance(callback, kind))

    def stop_is_asked(self) -> bool:
        self._stop_if(bool(self._total([self._wish_to_stop()])[0][0]))
        return self.stopping is not None

    def report(self, figures: dict[str, Any]) -> None:
        for callback in self.callbacks:
            callback.report(figures)

    def roll_back(self, checkpoint: Path) -> None:
        self.engine.load_weights(checkpoint / MODELING)
        states = load_engine(self.engine, checkpoint, self.say)
        self.position = Position(states.position.step, self.position.epoch, self.position.sample)
        self.counters["rollbacks"] += 1
        for callback in self.callbacks:
            callback.rolled_back(checkpoint, states.callbacks.get(callback.name or ""))

    def states(self) -> str:
        own = {c.name: c.state_dict() for c in self.callbacks if c.name}
        return states_text(
            self.position,
            self.setup.identity,
            self.engine,
            sampler=self.sampled,
            counters=self.counters,
            rows_per_step=self.split.rows_per_step,
            processes=self.ranks.world.size,
            config=self.config.to_json(),
            **own,
        )

    def say(self, text: str) -> None:
        if self.ranks.world.is_main:
            say(text)

    def warn(self, text: str) -> None:
        if self.ranks.world.is_main:
            warn(text)
