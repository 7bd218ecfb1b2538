"""Task arithmetic (arXiv 2212.04089): base + sum of weight x (model - base)."""

from collections.abc import Sequence

from llmforge.errors import UsageError
from llmforge.weights.merging.base import Method, Rows


class TaskArithmetic(Method):
    text = "--base, plus the differences of the models from it, each times its weight (default: 1 / number of models)"
    needs_base = True

    def default(self, models: int) -> list[float]:
        return [1.0 / models] * models

    def check(self, weights: Sequence[float]) -> None:
        if not any(weights):
            raise UsageError("--weights: must not all be 0.")

    def factors(self, rows: Sequence[Rows], weights: Sequence[float]) -> list[float]:
        return [1.0 - sum(weights), *weights]


METHOD = TaskArithmetic()
