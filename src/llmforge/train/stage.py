"""The stage loop: rows in order, one engine call per optimizer step, and everything around a step."""

import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from llmforge import tokenizer
from llmforge.console import progress, say, warn
from llmforge.data import PackedDataset
from llmforge.engine.build import build_engine
from llmforge.engine.protocol import MicroBatch, StepResult
from llmforge.errors import UsageError, UserError
from llmforge.model import vocabulary
from llmforge.train import checkpoint
from llmforge.train.batches import Deal, Groups, make_micro_batch
from llmforge.train.config import TrainConfig
from llmforge.train.monitor import Monitor, group_means
from llmforge.train.run import MODELING, is_modeling
from llmforge.train.schedule import make_schedule


@dataclass
class Position:
    """Where a run stands: `sample` rows of epoch `epoch` are done, after `step` optimizer steps."""

    step: int = 0
    epoch: int = 0
    sample: int = 0


class Stage:
    """One training, from its weights to its final model. `run` goes through it; everything else is one idea
    each.
    """

    def __init__(self, config: TrainConfig, weights: Path) -> None:
        self.config, self.origin = config, weights
        self.data = PackedDataset(config.dataset)
        self.vocabulary = vocabulary(weights)
        self.tokenizer = tokenizer.load(weights)
        self._check_inputs()
        self.position, self.counters = Position(), {"skipped_steps": 0, "tokens": 0}
        resumed = self._find_resumed()
        self.groups = Groups(tuple(self.data.categories), self.vocabulary.source)
        self.engine = build_engine(
            config, (resumed / "modeling") if resumed else weights, self.vocabulary, self.groups.count
        )
        self.deal = Deal(
            config.micro_batch_size,
            config.micro_batch_size * config.accumulation_steps * self.engine.world.data_size,
        )
        self.steps_per_epoch = -(-len(self.data) // self.deal.rows_per_step)
        self.total = min(config.num_epochs * self.steps_per_epoch, config.max_steps or 1 << 62)
        self.schedule = make_schedule(
            config.schedule, config.lr, config.min_lr_ratio, config.warmup_steps, self.total
        )
        if resumed:
            self._restore(resumed)
        self.stopping: str | None = None

    # -- before the first step
    # ----------------------------------------------------------------------------------------

    def _check_inputs(self) -> None:
        if self.data.tokenizer_fingerprint != self.tokenizer.fingerprint:
            raise UserError(
                f"{self.config.dataset[0]} was prepared with another tokenizer than that of {self.origin}; "
                f"run llmforge prepare-data --tokenizer-dir {self.origin}."
            )
        if self.config.max_length not in (None, self.data.max_length):
            raise UsageError(
                f"--max-length {self.config.max_length}: "
                f"the rows of {self.config.dataset[0]} have {self.data.max_length} tokens."
            )
        if not len(self.data):
            raise UserError(f"{self.config.dataset[0]} has no rows.")

    def _find_resumed(self) -> Path | None:
        wanted, save_dir = self.config.load_checkpoint, self.config.save_dir
        if not wanted or is_modeling(Path(wanted)):
            return None
        found = checkpoint.find_checkpoint(save_dir, wanted)
        if found is None:
            say(f"{save_dir} has no checkpoint yet: starting from {self.origin}.")
            return None
        states = checkpoint.read_states(found)
        for what, value in self._identity().items():
            if states["identity"][what] != value:
                raise UserError(
                    f"{found} belongs to a run with another {what} ({states['identity'][what]}, not {value})."
                )
        return found

    def _identity(self) -> dict[str, Any]:
        return {
            "dataset": self.data.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "seed": self.config.seed,
        }

    def _restore(self, path: Path) -> None:
        states = checkpoint.read_states(path)
        self.engine.load_state(path / "optimizer")
        self.engine.restore(states["engine"])
        self.position = Position(**states["position"])
        self.counters = dict(states["counters"])
        say(f"resuming {path} at step {self.position.step} of {self.total}.")

    # -- the loop
    # -----------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any] | None:
        """Trains to the end and returns the metrics of the run; None where it was asked to stop before."""
        config, start = self.config, self.position.step
        config.save_dir.mkdir(parents=True, exist_ok=True)
        checkpoint.remove_partial(config.save_dir)
        self._write_config()
        monitor = Monitor(config.save_dir, config.tensorboard_dir or config.save_dir / "tensorboard", start)
        self._announce()
        loss, began, tokens_before = float("nan"), time.monotonic(), self.counters["tokens"]
        with _Interrupts(self), progress("training", self.total - start, "steps") as advance:
            while self.position.step < self.total and not self.stopping:
                result, seconds = self._step()
                loss = result.loss
                speed = result.valid_tokens / seconds
                monitor.write(self._figures(result, seconds))
                advance(1, f"loss {loss:.4f}  {speed:,.0f} tokens/s")
                if self._save_is_due():
                    self._save()
        if self.stopping:
            self._save()
            say(
                f"stopped by {self.stopping} after step {self.position.step}; "
                "--load-checkpoint latest goes on."
            )
            monitor.close()
            return None
        last = self._save()
        checkpoint.link_model(last, config.save_dir / MODELING)
        monitor.close()
        seconds = time.monotonic() - began
        return {
            "steps": self.position.step,
            "tokens": self.counters["tokens"],
            "skipped_steps": self.counters["skipped_steps"],
            "final_loss": loss,
            "tokens_per_second": (self.counters["tokens"] - tokens_before) / seconds if seconds else 0.0,
            "peak_memory_bytes": self.engine.peak_memory(),
            "plugin": self.engine.name,
        }

    def _step(self) -> tuple[StepResult, float]:
        began, position = time.monotonic(), self.position
        rows = self._order()[position.sample : position.sample + self.deal.rows_per_step]
        batches = [self._micro_batch(share) for share in self.deal.share(rows, self.engine.world)]
        result = self.engine.train_step(batches, self.schedule.rate(position.step), lambda loss, norm: True)
        position.step += 1
        position.sample += len(rows)
        if position.sample == len(self.data):
            position.epoch, position.sample = position.epoch + 1, 0
        self.counters["tokens"] += result.valid_tokens
        if not result.applied:
            self.counters["skipped_steps"] += 1
            warn(
                f"step {position.step} is passed over: "
                f"loss {result.loss}, gradient norm {result.gradient_norm}."
            )
        return result, time.monotonic() - began

    def _order(self) -> np.ndarray:
        if getattr(self, "_ordered_epoch", None) != self.position.epoch:
            self._ordered_epoch = self.position.epoch
            self._epoch_order = self.data.order(self.config.seed, self.position.epoch)
        return self._epoch_order

    def _micro_batch(self, indices: np.ndarray) -> MicroBatch:
        config = self.config
        rows = self.data.rows(indices) if len(indices) else []
        return make_micro_batch(
            rows, config.micro_batch_size, self.data.max_length, self.groups, config.cross_document_attention
        )

    # -- saving and reporting
    # -----------------------------------------------------------------------------------------

    def _save_is_due(self) -> bool:
        interval, step = self.config.save_interval, self.position.step
        if step >= self.total:
            return False
        end_of_epoch = self.position.sample == 0 and not self.config.skip_save_each_epoch
        return end_of_epoch or bool(interval and step % interval == 0)

    def _save(self) -> Path:
        position = self.position
        path = self.config.save_dir / f"epoch-{position.epoch}_step-{position.step}"
        if not path.exists():
            states = {
                **asdict(position),
                "position": asdict(position),
                "identity": self._identity(),
                "engine": self.engine.state(),
                "engine_name": self.engine.name,
                "counters": self.counters,
                "rows_per_step": self.deal.rows_per_step,
                "config": self.config.to_json(),
            }
            identity = checkpoint.model_identity(self.vocabulary, self.tokenizer.fingerprint)
            checkpoint.write_checkpoint(
                path, self.engine.snapshot(), self.origin, identity, states, self.schedule
            )
        if self.config.keep_last:
            checkpoint.remove_old(self.config.save_dir, self.config.keep_last)
        return path

    def _figures(self, result: StepResult, seconds: float) -> dict[str, Any]:
        position = self.position
        return {
            "step": position.step,
            "epoch": position.epoch,
            "sample": position.sample,
            "loss": result.loss,
            **group_means(result.groups, self.groups),
            "learning_rate": self.schedule.rate(position.step - 1),
            "gradient_norm": result.gradient_norm,
            "applied": result.applied,
            "tokens": result.valid_tokens,
            "new_row_norm": self.engine.new_row_norm(),
            "seconds": seconds,
            "tokens_per_second": result.valid_tokens / seconds,
            "peak_memory_bytes": self.engine.peak_memory(),
        }

    def _write_config(self) -> None:
        import yaml

        text = yaml.safe_dump(self.config.to_json(), sort_keys=False, allow_unicode=True)
        say("configuration:\n" + "".join(f"  {line}\n" for line in text.splitlines()).rstrip())
        file = self.config.config_file or self.config.save_dir / "config.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def _announce(self) -> None:
        vocabulary = self.vocabulary
        say(
            f"{self.engine.describe()}; {len(self.data):,} rows of {self.data.max_length:,} tokens, "
            f"{self.deal.rows_per_step} per step, {self.total:,} steps; "
            f"vocabulary {vocabulary.size:,}, of which {vocabulary.size - vocabulary.source:,} are new."
        )


class _Interrupts:
    """SIGTERM and SIGINT end a run after the step under way, with a checkpoint; a second SIGINT ends it at
    once.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def __enter__(self) -> None:
        self.previous = {
            number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)
        }

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self.stage.stopping and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stage.stopping = signal.Signals(number).name
