"""New rows by a linear map from the hidden states of a token's spelling, fitted on old tokens."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llmforge.console import say
from llmforge.embedding.initializers.base import InitContext, Initializer

if TYPE_CHECKING:
    from llmforge.embedding.rows import NewRows


class Linear(Initializer):
    text = "a linear map of the source model's hidden states at the end of its spelling, fitted on old tokens that are split"
    makes = ("embedding", "head")
    runs_model = True

    def make(self, context: InitContext, roles: Sequence[str]) -> "Mapping[str, NewRows]":
        """`linear`: a new row is linear in the hidden state of its spelling.

            e(t) = A h(s_1 ... s_n) + b,   (A, b) = argmin sum_o || A h(p_1 ... p_m) + b - e(o) ||^2 + ridge

        h is the state of the source after a third of its layers behind the spelling alone: there the parts of a word have
        become one (Kaplan et al., "From Tokens to Words", arXiv 2410.05864). o are old tokens, p_1 ... p_m smaller old
        tokens that spell o, as the tokenizer would never cut it. No text and no gradient is needed. A piece that has no
        spelling gets an unknown row.
        """
        import numpy as np

        from llmforge.embedding.distillation import linear
        from llmforge.embedding.distillation.source_model import SourceModel
        from llmforge.embedding.subtokens import spellings
        from llmforge.weights.floats import to_float32

        source = context.source
        model = SourceModel(source, context.trust_remote_code)
        layers = model.a_third
        number = max(linear.FEWEST, linear.PER_DIMENSION * model.width)
        usable = context.old["embedding"].usable
        parts = linear.split_old_tokens(source, usable, number, context.options.seed)
        states = linear.spelled_states(model, list(parts.values()), model.start_ids, layers)
        spelled = spellings(source, context.target)
        known = np.array([bool(ids) for ids in spelled])
        new_states = linear.spelled_states(model, [ids for ids in spelled if ids], model.start_ids, layers)
        made = {}
        for role in roles:
            tensor = context.old[role].tensor
            wanted = to_float32(tensor.array()[list(parts)], tensor.dtype)
            matrix, constant, left = linear.fit(states, wanted)
            say(
                f"{role}: a map fitted on {len(parts):,} old tokens leaves {left:.0%} of the variance of others"
            )
            rows = np.zeros((len(spelled), wanted.shape[1]), np.float32)
            rows[known] = new_states @ matrix + constant
            made[role] = context.given(role, rows, known)
        return made


INITIALIZER = Linear()
