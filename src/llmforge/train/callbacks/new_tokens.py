"""How the new tokens fare: which of them the run has seen, and the norms of their embeddings."""

import numpy as np

from llmforge.train.callbacks.base import Callback, Run, Step
from llmforge.train.states import pack, unpack

# Norms need all embeddings, and on an accelerator wait for the step: they are not taken every time.
STEPS_BETWEEN_NORMS = 10


class NewTokens(Callback):
    """`new_tokens_never_seen` in every line; `new_row_norm` is null but in that of step 1 and of every tenth step."""

    name = "seen_new_tokens"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        vocabulary = run.setup.vocabulary
        self.seen = np.zeros(vocabulary.size - vocabulary.source, dtype=bool)

    def votes(self, step: Step) -> np.ndarray:
        self.seen[step.batch.new_tokens] = True
        return self.seen.astype(np.float64)

    def agreed(self, sums: np.ndarray) -> None:
        self.seen = sums > 0

    def after_step(self, step: Step) -> bool:
        number, norm = self.run.position.step, None
        if len(self.seen) and (number == 1 or number % STEPS_BETWEEN_NORMS == 0):
            norms = self.run.engine.embedding_norms()
            norm = float(norms[self.run.setup.vocabulary.source :].mean())
        step.figures["new_row_norm"] = norm
        step.figures["new_tokens_never_seen"] = int((~self.seen).sum())
        return False

    def state_dict(self) -> str:
        return pack(self.seen)

    def load_state_dict(self, state: str) -> None:
        self.seen = unpack(state, len(self.seen))
