"""The weighted mean (model soups, arXiv 2203.05482); of checkpoints of one run at a constant learning rate it takes the
place of the decay (arXiv 2505.12082).
"""

from collections.abc import Sequence

from llmforge.weights.merging.base import Method, Rows


class Linear(Method):
    text = "the mean of the models, weighted by --weights"

    def default(self, models: int) -> list[float]:
        return [1.0] * models

    def factors(self, rows: Sequence[Rows], weights: Sequence[float]) -> list[float]:
        return [weight / sum(weights) for weight in weights]


METHOD = Linear()
