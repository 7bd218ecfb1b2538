"""What rewards completions: a reward model, a file of rules, or the sum of both."""

from collections.abc import Sequence
from pathlib import Path

from llmforge.align.methods.base import Reward
from llmforge.align.rules import read_rules
from llmforge.tokenizer import Tokenizer

Ids = Sequence[int]


def find_rewards(model: Path | None, rules: Path | None, tokenizer: Tokenizer, length: int) -> list[Reward]:
    """The reward of the model in `model`, and that of the file `rules`; those that are given. Prompts with their completions have at
    most `length` tokens.
    """
    found: list[Reward] = []
    if model:
        from llmforge.align.models import load_reward_model, scores_of

        scorer = load_reward_model(model, tokenizer, length)

        def by_model(prompts: Sequence[Ids], completions: Sequence[Ids], texts: Sequence[str]) -> list[float]:
            return scores_of(scorer, [[*a, *b] for a, b in zip(prompts, completions, strict=True)])

        found.append(by_model)
    if rules:
        made = read_rules(rules)

        def by_rules(prompts: Sequence[Ids], completions: Sequence[Ids], texts: Sequence[str]) -> list[float]:
            return [made.reward(text, len(ids)) for text, ids in zip(texts, completions, strict=True)]

        found.append(by_rules)
    return found
