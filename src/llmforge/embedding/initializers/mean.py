"""The mean of all old rows."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llmforge.embedding.initializers.base import InitContext, Initializer

if TYPE_CHECKING:
    from llmforge.embedding.rows import Filler, NewRows, OldRows


class Mean(Initializer):
    text = "the mean of all old rows"

    def make(self, context: InitContext, roles: Sequence[str]) -> "Mapping[str, NewRows]":
        from llmforge.embedding.rows import NewRows

        return {role: NewRows(mean_filler(context.old[role])) for role in roles}


def mean_filler(old: "OldRows") -> "Filler":
    """`mean`: every new row is the mean of the old ones, e(t) = 1/n sum_s e(s) (Hewitt 2021)."""
    import numpy as np

    return lambda start, stop: np.repeat(old.mean[None], stop - start, axis=0)


INITIALIZER = Mean()
