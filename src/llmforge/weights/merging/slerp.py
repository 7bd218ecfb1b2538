"""Spherical interpolation of two models, tensor by tensor (K. Shoemake, "Animating rotation with quaternion curves", 1985)."""

from collections.abc import Sequence

from llmforge.errors import UsageError
from llmforge.weights.merging.base import Method, Rows

PARALLEL = 1e-6  # sine of the angle below which both formulas agree to float32


class Slerp(Method):
    text = "two models, along the arc between their directions in each tensor, by --weights"

    def default(self, models: int) -> list[float]:
        return [1.0] * models

    def check(self, weights: Sequence[float]) -> None:
        super().check(weights)
        if len(weights) != 2:
            raise UsageError(f"--method slerp merges two models, not {len(weights)}; use --method linear.")

    def factors(self, rows: Sequence[Rows], weights: Sequence[float]) -> list[float]:
        import numpy as np

        share = weights[1] / sum(weights)
        sums = np.zeros(3)
        for one, other in zip(*(part.blocks() for part in rows), strict=True):
            one, other = one.ravel().astype(np.float64), other.ravel().astype(np.float64)
            sums += (one @ other, one @ one, other @ other)
        size = np.sqrt(sums[1] * sums[2])
        angle = np.arccos(np.clip(sums[0] / size, -1, 1)) if size else 0.0
        if np.sin(angle) < PARALLEL:
            return [1 - share, share]
        return [
            float(np.sin((1 - share) * angle) / np.sin(angle)),
            float(np.sin(share * angle) / np.sin(angle)),
        ]


METHOD = Slerp()
