"""The first of the old tokens that spell a new one."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llmforge.embedding.initializers.base import InitContext, Initializer

if TYPE_CHECKING:
    from llmforge.embedding.rows import NewRows


class FirstSubtoken(Initializer):
    """h(t) = h(s_1), since where the old model would have begun to spell the new piece, it gave the logit of its first
    sub-token (as EEVE does, arXiv 2402.14714). Of an embedding it would leave out what the rest of the piece says.
    """

    text = "the row of the first old token that spells it"
    makes = ("head", "head_bias")

    def make(self, context: InitContext, roles: Sequence[str]) -> "Mapping[str, NewRows]":
        from llmforge.embedding.rows import NewRows

        first = context.subtokens.first()
        return {role: NewRows(first.filler(context.old[role])) for role in roles}


INITIALIZER = FirstSubtoken()
