"""What a run reports: one line of metrics.jsonl per step, TensorBoard, and Weights & Biases if asked for."""

import contextlib
import json
import math
import os
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmforge.backends.base import LossSums
from llmforge.console import warn
from llmforge.errors import UserError
from llmforge.train.batches import Groups

METRICS, WANDB_ID = "metrics.jsonl", ".wandb-id"


def cut_metrics(file: Path, steps: int) -> None:
    """Drops the lines after step `steps` (all of them where a run begins anew, `steps` 0, and a line that a kill cut
    short): the run writes them again.
    """
    if not file.is_file():
        return
    kept = [line + b"\n" for line in file.read_bytes().split(b"\n") if steps and _step(line) <= steps]
    temporary = file.with_name(f".{file.name}.tmp")
    with temporary.open("wb") as new:
        new.write(b"".join(kept))
        new.flush()
        os.fsync(new.fileno())
    temporary.replace(file)


def _step(line: bytes) -> float:
    """The step of a line of metrics.jsonl; infinity where it is none."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return math.inf
    return step if isinstance(step, int) else math.inf


class Lines:
    """Lines added to a file. Those that a full disk does not take wait for room, and nothing is written twice."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        self._waiting = b""
        self._warned = False

    def write(self, line: str) -> None:
        self._waiting += line.encode() + b"\n"
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(self._descriptor, self._waiting) :]
        except OSError as error:
            if not self._warned:
                self._warned = True
                warn(f"{self.file} cannot be written ({error.strerror}); its lines wait until it can.")

    def sync(self) -> None:
        """Makes what was written survive the end of the machine."""
        with contextlib.suppress(OSError):  # a full disk is found when the next line is written
            os.fsync(self._descriptor)

    def close(self) -> None:
        self.sync()
        os.close(self._descriptor)


class Monitor:
    """Writes the figures of a run; used by the main rank alone."""

    def __init__(self, save_dir: Path, tensorboard_dir: Path, first_step: int, project: str | None) -> None:
        self._file = save_dir / METRICS
        self._open(first_step)
        self._board = Board(tensorboard_dir, first_step)
        self._wandb = None
        if project:
            try:
                import wandb
            except ImportError:
                raise UserError("--wandb-project needs wandb: pip install 'llmforge[wandb]'.") from None
            self._wandb = wandb.init(
                project=project, name=save_dir.name, dir=str(save_dir), id=_run_id(save_dir), resume="allow"
            )

    def _open(self, steps: int) -> None:
        cut_metrics(self._file, steps)
        self._lines = Lines(self._file)

    def write(self, figures: Mapping[str, Any]) -> None:
        """One line for a step; nested figures become `name/inner` in TensorBoard."""
        self._lines.write(json.dumps(figures, ensure_ascii=False))
        flat = {}
        for name, value in figures.items():
            for inner, number in value.items() if isinstance(value, dict) else [("", value)]:
                if isinstance(number, (int, float)) and name not in ("step", "epoch"):
                    flat[f"{name}/{inner}" if inner else name] = number
        self._board.write(flat, figures["step"])
        if self._wandb:
            self._wandb.log(flat, step=figures["step"])

    def sync(self) -> None:
        """Called before a checkpoint is written: the lines up to its step must not be lost where it is not."""
        self._lines.sync()

    def go_back(self, steps: int) -> None:
        """Forgets the lines after step `steps`."""
        self._lines.close()
        self._open(steps)

    def close(self) -> None:
        self._lines.close()
        self._board.close()
        if self._wandb:
            self._wandb.finish()


class Board:
    """TensorBoard's logs; where they cannot be written (its writer is a thread of its own), a warning, once."""

    def __init__(self, directory: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.directory = directory
        self._before, threading.excepthook = threading.excepthook, self._thread_failed
        self._writer: Any = SummaryWriter(str(directory), purge_step=first_step + 1)

    def write(self, figures: Mapping[str, float], step: int) -> None:
        try:
            for name, number in figures.items():
                if self._writer:
                    self._writer.add_scalar(name, number, step)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        try:
            if self._writer:
                self._writer.close()
        except OSError as error:
            self._give_up(error)
        threading.excepthook = self._before

    def _thread_failed(self, failed: threading.ExceptHookArgs) -> None:
        ours = failed.thread is not None and type(failed.thread).__module__.startswith("tensorboard.")
        if not (ours and isinstance(failed.exc_value, OSError)):
            self._before(failed)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        if self.directory.is_dir():  # otherwise the run itself says that its directory is gone
            warn(f"TensorBoard's logs in {self.directory} end here ({error.strerror}); training goes on.")


def _run_id(save_dir: Path) -> str:
    """The run's name at Weights & Biases, kept beside the metrics so that a resumed run goes on with it."""
    file = save_dir / WANDB_ID
    if not file.is_file():
        file.write_text(secrets.token_hex(4), encoding="utf-8")
    return file.read_text(encoding="utf-8")


def group_means(sums: LossSums, groups: Groups) -> dict[str, dict[str, float]]:
    """Mean losses in nats per token, by category and by old and new tokens, of the groups that have
    tokens.
    """
    tables: dict[str, dict[str, tuple[float, int]]] = {"loss_by_category": {}, "loss_by_token": {}}
    for number in range(groups.count):
        category, new = groups.label(number)
        for table, name in (("loss_by_category", category), ("loss_by_token", "new" if new else "old")):
            loss, tokens = tables[table].get(name, (0.0, 0))
            tables[table][name] = (loss + float(sums.loss[number]), tokens + int(sums.tokens[number]))
    return {
        table: {n: loss / tokens for n, (loss, tokens) in rows.items() if tokens}
        for table, rows in tables.items()
    }


def bits_per_byte(sums: LossSums, groups: Groups, byte_counts: np.ndarray) -> dict[str, float]:
    """Bits per UTF-8 byte of each category and of all; `byte_counts` (categories,) of the text that was
    measured.
    """
    losses = sums.loss.reshape(-1, 2).sum(dim=1).numpy() / np.log(2)
    values = {name: losses[i] / byte_counts[i] for i, name in enumerate(groups.categories) if byte_counts[i]}
    return {name: float(value) for name, value in {**values, "all": losses.sum() / byte_counts.sum()}.items()}
