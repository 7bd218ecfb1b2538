"""What a run reports: one line of metrics.jsonl per step, TensorBoard, and Weights & Biases if asked for."""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from llmforge.engine.protocol import LossSums
from llmforge.errors import UserError
from llmforge.train.batches import Groups

METRICS, WANDB_ID = "metrics.jsonl", ".wandb-id"


def cut_metrics(file: Path, steps: int) -> None:
    """Drops the lines after step `steps` (and a last line cut short), which a resumed run writes again."""
    if not file.is_file():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= steps:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(file)


class Monitor:
    """Writes the figures of a run; used by the main rank alone."""

    def __init__(self, save_dir: Path, tensorboard_dir: Path, first_step: int, project: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._file = save_dir / METRICS
        self._lines: TextIO
        self._open(first_step)
        self._board = SummaryWriter(str(tensorboard_dir), purge_step=first_step + 1)
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
        self._lines = self._file.open("a", encoding="utf-8")

    def write(self, figures: Mapping[str, Any]) -> None:
        """One line for a step; nested figures become `name/inner` in TensorBoard."""
        self._lines.write(json.dumps(figures, ensure_ascii=False) + "\n")
        self._lines.flush()
        flat = {}
        for name, value in figures.items():
            for inner, number in value.items() if isinstance(value, dict) else [("", value)]:
                if isinstance(number, (int, float)) and name not in ("step", "epoch"):
                    flat[f"{name}/{inner}" if inner else name] = number
        for name, number in flat.items():
            self._board.add_scalar(name, number, figures["step"])
        if self._wandb:
            self._wandb.log(flat, step=figures["step"])

    def go_back(self, steps: int) -> None:
        """Forgets the lines after step `steps`."""
        self._lines.close()
        self._open(steps)

    def close(self) -> None:
        os.fsync(self._lines.fileno())
        self._lines.close()
        self._board.close()
        if self._wandb:
            self._wandb.finish()


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
