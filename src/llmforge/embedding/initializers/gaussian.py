"""Rows drawn from the normal distribution of the old ones."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llmforge.embedding.initializers.base import ROLES, InitContext, Initializer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llmforge.embedding.rows import Filler, NewRows, OldRows
    from llmforge.weights.floats import Float32


class Gaussian(Initializer):
    text = "drawn from the normal distribution of the old rows"

    def make(self, context: InitContext, roles: Sequence[str]) -> "Mapping[str, NewRows]":
        from llmforge.embedding.rows import NewRows

        seed = context.options.seed
        return {
            role: NewRows(gaussian_filler(context.old[role], [seed, ROLES.index(role)])) for role in roles
        }


def gaussian_filler(old: "OldRows", seed: list[int]) -> "Filler":
    """`gaussian`: every new row is drawn from the normal distribution with the mean and covariance of the old ones.

        e(t) ~ N(m, S),   m = 1/n sum_s e(s),   S = 1/n sum_s (e(s) - m)(e(s) - m)^T

    (Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021.) S is taken whole, where
    transformers' `mean_resizing` shrinks it by 1e9 and so gives all new rows the same values.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    factor = _square_root(old.covariance).astype(np.float32)

    def fill(start: int, stop: int) -> "Float32":
        return old.mean + generator.standard_normal((stop - start, len(old.mean)), np.float32) @ factor.T

    return fill


def _square_root(covariance: "npt.NDArray[np.float64]") -> "npt.NDArray[np.float64]":
    """L with L @ L.T == covariance."""
    import numpy as np

    try:
        return np.asarray(np.linalg.cholesky(covariance), np.float64)
    except np.linalg.LinAlgError:  # fewer independent rows than columns
        values, vectors = np.linalg.eigh(covariance)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0)), np.float64)


INITIALIZER = Gaussian()
