"""What a run reports: one line of metrics.jsonl per step, TensorBoard, and the progress line."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from llmforge.engine.protocol import LossSums
from llmforge.train.batches import Groups

METRICS = "metrics.jsonl"


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

    def __init__(self, save_dir: Path, tensorboard_dir: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        cut_metrics(save_dir / METRICS, first_step)
        self._lines: TextIO = (save_dir / METRICS).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(tensorboard_dir), purge_step=first_step + 1)

    def write(self, figures: Mapping[str, Any]) -> None:
        """One line for a step; nested figures become `name/inner` in TensorBoard."""
        self._lines.write(json.dumps(figures, ensure_ascii=False) + "\n")
        self._lines.flush()
        for name, value in figures.items():
            for inner, number in value.items() if isinstance(value, dict) else [("", value)]:
                if isinstance(number, (int, float)) and name not in ("step", "epoch"):
                    self._board.add_scalar(f"{name}/{inner}" if inner else name, number, figures["step"])

    def close(self) -> None:
        os.fsync(self._lines.fileno())
        self._lines.close()
        self._board.close()


def group_means(sums: LossSums, groups: Groups) -> dict[str, dict[str, float]]:
    """Mean losses in nats per token by category and by old and new tokens, for the groups that have
    tokens.
    """
    by_name: dict[str, dict[str, tuple[float, int]]] = {"loss_by_category": {}, "loss_by_token": {}}
    for number in range(groups.count):
        category, new = groups.label(number)
        for table, name in (("loss_by_category", category), ("loss_by_token", "new" if new else "old")):
            loss, tokens = by_name[table].get(name, (0.0, 0))
            by_name[table][name] = (loss + float(sums.loss[number]), tokens + int(sums.tokens[number]))
    return {
        table: {n: loss / tokens for n, (loss, tokens) in rows.items() if tokens}
        for table, rows in by_name.items()
    }
