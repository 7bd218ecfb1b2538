"""Losses by group as figures that users read."""

import numpy as np

from llmforge.backends.base import LossSums
from llmforge.train.batches import Groups


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
