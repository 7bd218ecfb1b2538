"""The choice among ways to make new rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from llmforge.console import say
from llmforge.corpus import ReadOptions
from llmforge.embedding.initializers.align import align
from llmforge.embedding.initializers.donor import Donor, orthogonal_matching_pursuit
from llmforge.embedding.initializers.focus import focus
from llmforge.embedding.initializers.subtokens import subtoken_mean
from llmforge.embedding.options import Growth
from llmforge.embedding.rows import Filler, Mixture, OldRows, gaussian_filler, mean_filler, with_median_norm
from llmforge.tokenizer import Tokenizer

ROLES = ("embedding", "head", "head_bias")


@dataclass
class Initialiser:
    """Makes the new rows of each tensor by the rules of `growth`.

    `align`, `focus` and `donor` may know nothing of a new token; it gets the mean of its sub-tokens then, and how many
    did is counted in `fallbacks` by role. A piece without sub-tokens (none of its characters is known) gets the
    mean of all rows.
    """

    growth: Growth
    source: Tokenizer
    target: Tokenizer
    corpus: Sequence[Path]
    donor_path: Path | None
    reading: ReadOptions = field(default_factory=ReadOptions)

    def __post_init__(self) -> None:
        self.fallbacks: dict[str, int] = {}

    def filler(self, role: str, old: OldRows) -> Filler:
        """The new rows of the tensor `old`, which is one of ROLES."""
        rule = (
            self.growth.init
            if role == "embedding" or self.growth.head_init == "same"
            else self.growth.head_init
        )
        if rule == "mean":
            filler = mean_filler(old)
        elif rule == "gaussian":
            filler = gaussian_filler(old, [self.growth.seed, ROLES.index(role)])
        elif rule == "first-subtoken":
            filler = self.subtokens.first().filler(old)
        else:
            filler = self._mixture(rule, role, old).filler(old)
        corrected = self.growth.norm_correction and role != "head_bias"
        return with_median_norm(filler, old) if corrected else filler

    @cached_property
    def subtokens(self) -> Mixture:
        return subtoken_mean(self.source, self.target)

    def _mixture(self, rule: str, role: str, old: OldRows) -> Mixture:
        if rule == "subtoken-mean":
            found = self.subtokens
        elif rule == "donor":
            tensor = self._donor.embedding if role == "embedding" else self._donor.head
            found = orthogonal_matching_pursuit(
                self.source, self.target, self._donor, tensor, old.usable, self.growth.donor_terms
            )
        else:
            found = self._learned
        self.fallbacks[role] = len(found.empty)
        if len(found.empty):
            say(
                f"{role}: {len(found.empty):,} new tokens are unknown to --init {rule} and made from their sub-tokens"
            )
        return found.filled_from(self.subtokens)

    @cached_property
    def _learned(self) -> Mixture:
        if self.growth.init == "align":
            return align(self.source, self.target, self.corpus, self.reading)
        return focus(self.source, self.target, self.corpus, self.growth.seed, self.reading)

    @cached_property
    def _donor(self) -> Donor:
        assert self.donor_path is not None
        return Donor(self.donor_path)
