"""The mean of the old tokens that spell a new one."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llmforge.embedding.initializers.base import InitContext, Initializer

if TYPE_CHECKING:
    from llmforge.embedding.rows import NewRows


class SubtokenMean(Initializer):
    text = "the mean of the old tokens that spell it"

    def make(self, context: InitContext, roles: Sequence[str]) -> "Mapping[str, NewRows]":
        from llmforge.embedding.rows import NewRows

        return {role: NewRows(context.subtokens.filler(context.old[role]), by_subtokens=0) for role in roles}


INITIALIZER = SubtokenMean()
