"""Where the figures of a run go: a line of metrics.jsonl per step, TensorBoard, and Weights & Biases if asked for."""

import contextlib
import json
import math
import os
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmforge.console import warn
from llmforge.errors import UserError
from llmforge.train.callbacks.base import Callback, Stage
from llmforge.train.save_dir import METRICS

WANDB_ID = ".wandb-id"


def cut_metrics(file: Path, steps: int) -> None:
    """Drops the lines after step `steps` (all of them where a run begins again, `steps` 0, and a line that a kill cut
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
    """Lines added to a file. Those that a full disk does not take are written later, and nothing is written twice."""

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
                warn(
                    f"{self.file} cannot be written ({error.strerror}); its lines are kept and written later."
                )

    def sync(self) -> None:
        """Makes what was written survive the end of the machine."""
        with contextlib.suppress(OSError):  # a full disk is found when the next line is written
            os.fsync(self._descriptor)

    def close(self) -> None:
        self.sync()
        os.close(self._descriptor)


class Metrics(Callback):
    """Writes the figures of a run; the main rank alone has anything to do."""

    stage = Stage.WRITES

    def start(self) -> None:
        run, config = self.run, self.run.config
        self._writes, self._wandb = run.setup.world.is_main, None
        if not self._writes:
            return
        self._file = config.output / METRICS
        self._open(run.position.step)
        self._board = Board(config.tensorboard_dir or config.output / "tensorboard", run.position.step)
        if config.wandb_project:
            try:
                import wandb
            except ImportError:
                raise UserError("--wandb-project needs wandb; run: pip install 'llmforge[wandb]'.") from None
            self._wandb = wandb.init(
                project=config.wandb_project,
                name=config.output.name,
                dir=str(config.output),
                id=_run_id(config.output),
                resume="allow",
            )

    def report(self, figures: Mapping[str, Any]) -> None:
        """One line for a step; nested figures become `name/inner` in TensorBoard."""
        if not self._writes:
            return
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
        if self._writes:
            self._lines.sync()

    def rolled_back(self, checkpoint: Path, state: Any) -> None:
        """Forgets the lines after the checkpoint's step."""
        if self._writes:
            self._lines.close()
            self._open(self.run.position.step)

    def close(self) -> None:
        if self._writes:
            self._lines.close()
            self._board.close()
        if self._wandb:
            self._wandb.finish()

    def _open(self, steps: int) -> None:
        cut_metrics(self._file, steps)
        self._lines = Lines(self._file)


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
            warn(f"TensorBoard's logs in {self.directory} end here ({error.strerror}); training continues.")


def _run_id(save_dir: Path) -> str:
    """The run's name at Weights & Biases, kept beside the metrics so that a resumed run continues with it."""
    file = save_dir / WANDB_ID
    if not file.is_file():
        file.write_text(secrets.token_hex(4), encoding="utf-8")
    return file.read_text(encoding="utf-8")
