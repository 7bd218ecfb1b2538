"""The stage loop: rows in order, one engine call per optimizer step, and everything around a step."""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmforge import tokenizer
from llmforge.backends import registry
from llmforge.backends.base import StepResult
from llmforge.backends.build import build_engine, check, choose_device
from llmforge.backends.common.heartbeats import Heartbeats
from llmforge.backends.common.processes import Processes, join_processes
from llmforge.console import progress, say, warn
from llmforge.dataset.packed import PackedDataset
from llmforge.errors import UserError
from llmforge.train import branch, plan, preflight
from llmforge.train.batches import Deal, Groups, make_micro_batch
from llmforge.train.checkpoint import Contents, hold_files, link_model
from llmforge.train.guards import BadStep, Guard, stop_for
from llmforge.train.holdout import Holdout
from llmforge.train.interrupts import Interrupts
from llmforge.train.monitor import Monitor, group_means
from llmforge.train.options import TrainConfig
from llmforge.train.preflight import Utilization
from llmforge.train.ranks import facts, refuse_disagreement, refuse_separate_directories
from llmforge.train.resolved import write_config
from llmforge.train.resume import check_steps, find_resumed
from llmforge.train.save_dir import MODELING
from llmforge.train.saver import Saver
from llmforge.train.schedule import make_schedule
from llmforge.train.states import Position, pack, read_states, states_text, unpack
from llmforge.weights import vocabulary


class Stage:
    """One training, from its weights to its final model."""

    def __init__(self, config: TrainConfig, weights: Path) -> None:
        self.config, self.origin, self.started = config, weights, time.monotonic()
        self.device = choose_device(config.rehearse)
        self.world = join_processes(
            self.device, registry.find(registry.resolved(config.plugin, 1)).process_group
        )
        self.processes = Processes(self.world)
        self.heartbeats = Heartbeats(self.processes, config.rank_timeout)
        self.heartbeats.start()
        try:
            with self.processes.naming_the_lost():
                self._prepare()
        except BaseException:
            self.heartbeats.stop()
            raise

    def _prepare(self) -> None:
        """Reads the data, makes the engine and finds where to go on."""
        config, weights = self.config, self.origin
        self.data = PackedDataset(config.dataset)
        self.vocabulary = vocabulary(weights)
        self.tokenizer = tokenizer.load(weights)
        # The source model may go away while the run goes on.
        self.model_files = hold_files(weights) if self.world.is_main else {}
        refuse_disagreement(self.processes, facts(config, weights, self._identity()))
        refuse_separate_directories(self.processes, config.save_dir)
        preflight.check_inputs(config, self.data, self.tokenizer.fingerprint, self.vocabulary, weights)
        check(config, weights, self.world, self.data.max_length)
        preflight.check_rows(self.data, self.vocabulary, config.dataset[0])
        old_rows = self.vocabulary.source
        self.groups = Groups(tuple(self.data.categories), old_rows)
        self.holdout = (
            Holdout(config.holdout, self.tokenizer.fingerprint, old_rows) if config.holdout else None
        )
        resumed = find_resumed(config, self.processes, self._identity(), weights)
        # Adapters are part of the state, and belong to the weights that the run had started from.
        start = resumed / MODELING if resumed and config.trainable != "lora" else weights
        groups = max(self.groups.count, self.holdout.groups.count if self.holdout else 0)
        self.engine = build_engine(
            config, start, self.vocabulary, groups, self.device, self.world, *self._rows()
        )
        self.deal = Deal(
            config.micro_batch_size,
            config.micro_batch_size * config.accumulation_steps * self.engine.world.data_size,
        )
        self.make_batch = partial(
            make_micro_batch,
            micro=config.micro_batch_size,
            length=self.data.max_length,
            groups=self.groups,
            cross_document=config.cross_document_attention,
        )
        self.position = Position()
        self.counters = {"tokens": 0, "skipped_steps": 0, "spikes": 0, "rollbacks": 0}
        self.guard = Guard(config.on_spike, config.spike_threshold)
        self.seen = np.zeros(self.vocabulary.size - old_rows, dtype=bool)
        self.bad: list[BadStep] = []
        self.asked_to_stop: str | None = None  # this rank, by a signal or the time limit
        self.stopping: str | None = None  # all ranks, once they know of each other
        self._saved_at, self._save_by_time = time.monotonic(), False
        self.last_save: tuple[int, Path | None] = (0, None)
        # The figures of the last step, where a run was asked to stop while it measured on the holdout.
        self.unmeasured: dict[str, Any] | None = None
        self.resumed = resumed
        self._ordered_epoch = -1
        if resumed:
            self._restore(resumed)
        steps_per_epoch = -(-len(self.data) // self.deal.rows_per_step)
        self.total = min(config.num_epochs * steps_per_epoch, config.max_steps or 1 << 62)
        self.schedule = make_schedule(
            config.schedule, config.lr, config.min_lr_ratio, config.warmup_steps, self.total
        )
        if resumed and (jump := check_steps(resumed, self.position.step, self.total, self.schedule, config)):
            self._say(jump)
        preflight.check_embeddings(self.engine.embedding_norms(), self.vocabulary, start)
        shape = plan.read_shape(start)
        if self.world.is_main:
            preflight.check_room(config, shape, self.engine, self.data.max_length, self.device)
        flops = shape.flops_per_token(
            config.trainable, plan.visible_keys(self.data, config.cross_document_attention)
        )
        self.utilization = Utilization(flops, self.engine.precision, self.world.size, self.device)

    # Before the first step.

    def _rows(self) -> tuple[int, int]:
        """The longest row, and the most documents that one has, of all that the engine will see."""
        datasets = [self.data, *([self.holdout.data] if self.holdout else [])]
        return max(d.max_length for d in datasets), max(d.documents_per_row for d in datasets)

    def _identity(self) -> dict[str, Any]:
        return {
            "dataset": self.data.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "seed": self.config.seed,
        }

    def _restore(self, path: Path) -> None:
        states = read_states(path)
        self.engine.load_state(path / "optimizer")
        self.engine.restore(states.engine)
        self.position = states.position
        if states.identity["dataset"] != self.data.fingerprint:
            self._say("the dataset is another one: it is read from its beginning.")
            self.position.sample = 0
        self.counters = states.counters
        self.guard.restore(states.guard)
        self.seen = unpack(states.seen_new_tokens, len(self.seen))
        self.unmeasured = states.unmeasured
        self.last_save = (self.position.step, path)
        if states.rows_per_step != self.deal.rows_per_step:
            self._say(
                f"a step keeps the {states.rows_per_step} rows of the checkpoint, though the flags and "
                f"{self.world.size} processes would make it {self.deal.rows_per_step}."
            )
            self.deal = Deal(self.deal.micro, states.rows_per_step)
        before, now = states.engine.get("description"), self.engine.describe()
        if before and before != now:
            self._say(f"{path} was computed by {before}; now it is {now}: the bits may come out otherwise.")
        self._say(f"resuming {path} after step {self.position.step}.")

    # The loop.

    def run(self) -> dict[str, Any] | None:
        """Trains to the end and returns the metrics of the run; None where it was asked to stop before."""
        config, save_dir = self.config, self.config.save_dir
        save_dir.mkdir(parents=True, exist_ok=True)
        if self.world.is_main:
            branch.remove_partial(save_dir)
            branch.set_aside(save_dir, self.resumed)
            write_config(config)
        self.saver = Saver(
            save_dir, config.keep_last, config.background_save, self.world.is_main, self.resumed
        )
        board = config.tensorboard_dir or save_dir / "tensorboard"
        start = self.position.step
        self.monitor = Monitor(save_dir, board, start, config.wandb_project) if self.world.is_main else None
        self._announce()
        try:
            with Interrupts(self), self.processes.naming_the_lost():
                result = self._train()
        except UserError as error:
            if self.world.is_main and self.saver.is_gone():
                raise self._gone() from error
            raise
        finally:
            self.heartbeats.stop()
            if self.monitor:
                self.monitor.close()
        self.saver.close()
        return result

    def _train(self) -> dict[str, Any] | None:
        start, tokens_before, began = self.position.step, self.counters["tokens"], time.monotonic()
        result: StepResult | None = None
        if self.unmeasured:
            self._report(self.unmeasured)
        elif self.position.step == 0 and self.holdout:
            self._report({"step": 0})
        bar: Any = progress("training", self.total - start, "steps")
        with bar if self.world.is_main else nullcontext(lambda *_: None) as advance:
            while (
                self.position.step < self.total
                and self.position.epoch < self.config.num_epochs
                and not self.stopping
            ):
                result, figures = self._step()
                if not result.applied and self._handle_bad_step(result, figures):
                    continue
                self._report(figures)
                advance(1, f"loss {result.loss:.4f}  {figures['tokens_per_second']:,.0f} tokens/s")
                if self._save_is_due() and not self.stopping:
                    self._save()
        self._save(last=True)
        if self.stopping:
            if self.last_save[1] is None:
                self._say(f"stopped by {self.stopping} before the first step; the same command begins anew.")
                return None
            self._say(
                f"stopped by {self.stopping} after step {self.position.step}; --load-checkpoint latest goes on."
            )
            return None
        if self.world.is_main and self.last_save[1]:
            link_model(self.last_save[1], self.config.save_dir / MODELING)
        seconds = time.monotonic() - began
        return {
            "steps": self.position.step,
            **self.counters,
            "final_loss": result.loss if result else None,
            "tokens_per_second": (self.counters["tokens"] - tokens_before) / seconds,
            "peak_memory_bytes": self.engine.peak_memory(),
            "plugin": self.engine.name,
            "processes": self.world.size,
        }

    def _step(self) -> tuple[StepResult, dict[str, Any]]:
        began, position = time.monotonic(), self.position
        rows = self._order()[position.sample : position.sample + self.deal.rows_per_step]
        batches, byte_count = [], 0
        for share in self.deal.share(rows, self.engine.world):
            read = self.data.rows(share) if len(share) else []
            byte_count += sum(int(row.seq_bytes.sum()) for row in read)
            for row in read:
                self._see(row.input_ids)
            batches.append(self.make_batch(read))
        rate = self.schedule.rate(position.step)
        result = self.engine.train_step(batches, rate, self.guard.accept)
        if self.guard.spiked:
            self.counters["spikes"] += 1
            self._warn(
                f"step {position.step + 1}: jump of {self.guard.spiked}; --on-spike is {self.config.on_spike}."
            )
        if not result.applied:
            why = self.guard.spiked or f"loss {result.loss}, gradient norm {result.gradient_norm}"
            self.bad.append(BadStep(position.step + 1, position.epoch, why, rows.tolist()))
        else:
            self.bad = []
        position.step += 1
        position.sample += len(rows)
        if position.sample == len(self.data):
            position.epoch, position.sample = position.epoch + 1, 0
        self.counters["tokens"] += result.valid_tokens
        byte_count = self._agree(byte_count)
        norms = self.engine.embedding_norms()[self.vocabulary.source :]
        seconds = time.monotonic() - began
        speed = result.valid_tokens / seconds
        return result, {
            **asdict(position),
            "loss": result.loss,
            **group_means(result.groups, self.groups),
            "learning_rate": rate,
            "gradient_norm": result.gradient_norm,
            "applied": result.applied,
            "tokens": result.valid_tokens,
            "bytes": byte_count,
            "new_row_norm": float(norms.mean()) if len(norms) else None,
            "new_tokens_never_seen": int((~self.seen).sum()),
            "seconds": seconds,
            "tokens_per_second": speed,
            **self.utilization.figures(speed),
            "bytes_per_second": byte_count / seconds,
            "peak_memory_bytes": self.engine.peak_memory(),
        }

    def _agree(self, byte_count: int) -> int:
        """What ranks must know of each other after a step: bytes read, tokens seen, and whether to stop
        or save.
        """
        self._look_at_the_clock()
        now = time.monotonic()
        save_due = self.config.save_seconds is not None and now - self._saved_at >= self.config.save_seconds
        gone = self.world.is_main and self.saver.is_gone()
        local = np.concatenate([[byte_count, bool(self.asked_to_stop), save_due, gone], self.seen])
        summed = self.engine.total(torch.from_numpy(local.astype(np.float64))).numpy()
        if summed[3]:
            raise self._gone()
        self._stop_if(bool(summed[1]))
        self._save_by_time = bool(summed[2])
        self.seen = summed[4:] > 0
        return int(summed[0])

    def _stop_is_asked(self) -> bool:
        """Collective: whether any rank was asked to stop."""
        self._look_at_the_clock()
        asked = torch.tensor([float(bool(self.asked_to_stop))], dtype=torch.float64)
        self._stop_if(bool(self.engine.total(asked).item()))
        return self.stopping is not None

    def _look_at_the_clock(self) -> None:
        allowed = self.config.seconds_allowed()
        if allowed is not None and time.monotonic() - self.started >= allowed:
            self.asked_to_stop = self.asked_to_stop or "--time-limit"

    def _stop_if(self, asked: bool) -> None:
        self.stopping = (self.asked_to_stop or "another process") if asked else None

    def _gone(self) -> UserError:
        return UserError(
            f"--save-dir {self.config.save_dir} was deleted or moved while the training ran; it ended after step "
            f"{self.position.step}, as nothing can be saved."
        )

    def _order(self) -> np.ndarray:
        if self._ordered_epoch != self.position.epoch:
            self._ordered_epoch = self.position.epoch
            self._epoch_order = self.data.order(self.config.seed, self.position.epoch)
        return self._epoch_order

    def _see(self, ids: np.ndarray) -> None:
        self.seen[ids[ids >= self.vocabulary.source] - self.vocabulary.source] = True

    def _handle_bad_step(self, result: StepResult, figures: Mapping[str, Any]) -> bool:
        """Counts a step that was not applied; True where the run went back to a checkpoint."""
        self.counters["skipped_steps"] += 1
        bad = self.bad[-1]
        if not self.guard.spiked:
            self._warn(f"step {bad.step} is passed over: {bad.why}.")
        if len(self.bad) >= self.config.max_bad_steps:
            self.saver.wait()
            raise stop_for(self.bad, self.config.save_dir, self.world.is_main)
        if not (self.guard.spiked and self.config.on_spike == "rollback"):
            return False
        self.saver.wait()
        path = self.saver.newest
        if path is None or branch.damage(path):
            self._warn("there is no checkpoint yet to go back to: the step is passed over.")
            return False
        # The data between the checkpoint and the jump are passed over (PaLM, arXiv 2204.02311, section 5.1).
        counters, position, seen = dict(self.counters), self.position, self.seen
        self.engine.load_weights(path / MODELING)
        self._restore(path)
        self.counters = {**counters, "rollbacks": counters["rollbacks"] + 1}
        step = self.position.step
        self.position, self.seen, self.unmeasured = (
            Position(step, position.epoch, position.sample),
            seen,
            None,
        )
        if self.monitor:
            self.monitor.go_back(step)
        return True

    # Saving and reporting.

    def _save_is_due(self) -> bool:
        interval, step = self.config.save_interval, self.position.step
        end_of_epoch = self.position.sample == 0 and not self.config.skip_save_each_epoch
        return step < self.total and (
            end_of_epoch or self._save_by_time or bool(interval and step % interval == 0)
        )

    def _save(self, last: bool = False) -> None:
        position = self.position
        if last and position.step == self.last_save[0]:
            self.saver.wait()
            if position.step == 0 or (self.last_save[1] and branch.damage(self.last_save[1]) is None):
                return
        path = self.config.save_dir / f"epoch-{position.epoch}_step-{position.step}"
        text = states_text(
            position,
            self._identity(),
            self.engine,
            counters=self.counters,
            guard=self.guard.state(),
            rows_per_step=self.deal.rows_per_step,
            processes=self.world.size,
            seen_new_tokens=pack(self.seen),
            unmeasured=self.unmeasured,
            config=self.config.to_json(),
        )
        identity = {"vocabulary": asdict(self.vocabulary), "tokenizer": self.tokenizer.fingerprint}
        contents = Contents(self.model_files, identity, text, position.step, self.schedule)
        if self.monitor:
            self.monitor.sync()
        save = self.saver.save_last if last else self.saver.save
        save(path, self.engine.snapshot(), contents)
        self.last_save, self._saved_at = (position.step, path), time.monotonic()

    def _report(self, figures: dict[str, Any]) -> None:
        """Writes the figures of a step, measured on the holdout where that is due; where the run is asked to stop
        meanwhile they go into the checkpoint, and the resumed run measures and writes them.
        """
        self.unmeasured = None
        if self.holdout and (self.position.step == 0 or self._measurement_is_due()):
            measured = self._measure_holdout()
            if measured is None:
                self.unmeasured = figures
                return
            figures = figures | measured
        self._write(figures)

    def _measurement_is_due(self) -> bool:
        every = self.config.eval_interval
        return self.position.step == self.total or bool(every and self.position.step % every == 0)

    def _measure_holdout(self) -> dict[str, Any] | None:
        assert self.holdout is not None
        values = self.holdout.measure(
            self.engine,
            self.config.micro_batch_size,
            self.config.cross_document_attention,
            self._stop_is_asked,
        )
        if values is None:
            return None
        self._say(f"step {self.position.step}: {values['all']:.4f} bits per byte on the holdout.")
        return {"holdout_bits_per_byte": values}

    def _write(self, figures: Mapping[str, Any]) -> None:
        if self.monitor:
            self.monitor.write(figures)

    def _announce(self) -> None:
        size, source = self.vocabulary.size, self.vocabulary.source
        if self.config.pad_token:
            self._say(
                f"--pad-token {self.config.pad_token} changes nothing: rows are packed, and their padding is neither seen nor learned."
            )
        self._say(
            f"{self.engine.describe()}; {len(self.data):,} rows of {self.data.max_length:,} tokens, "
            f"{self.deal.rows_per_step} per step, {self.total:,} steps; "
            f"vocabulary {size:,}, of which {size - source:,} are new."
        )

    def _say(self, text: str) -> None:
        if self.world.is_main:
            say(text)

    def _warn(self, text: str) -> None:
        if self.world.is_main:
            warn(text)
