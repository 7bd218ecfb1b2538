"""Reward models, and what is sampled and rewarded: by a model or by rules, near the starting model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmforge.errors import UserError

from .conftest import figures, make_pairs

pytestmark = pytest.mark.slow
SAMPLED = {"max_new_tokens": 12, "micro_batch_size": 4, "learning_rate": 2e-3, "schedule": "constant"}


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """Answers of small letters a to m."""
    file = tmp_path / "rules.yaml"
    file.write_text("rules:\n  - share: '[a-m]'\n")
    return file


def test_a_reward_model_tells_pairs_apart_that_were_held_out_and_rewards_completions(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    data, held = make_pairs(tmp_path / "pairs.jsonl", 128), make_pairs(tmp_path / "held.jsonl", 60, seed=1)
    made = train("reward", "scores", data, (held,), learning_rate=2e-3, micro_batch_size=16, num_epochs=5)
    assert made.manifest.metrics["heldout"]["accuracy"] >= 0.95
    model = tmp_path / "scores" / "modeling"

    from transformers import AutoModelForSequenceClassification

    loaded, found = AutoModelForSequenceClassification.from_pretrained(model, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert loaded.config.num_labels == 1

    from llmforge.align.models import scores_of
    from llmforge.weights.completeness import check_complete

    sequences = [[5, 6, 7], [8, 9, 10, 11, 12]]
    together = scores_of(loaded, sequences)
    loaded.config.pad_token_id = None  # as some reward models come
    assert scores_of(loaded, sequences) == pytest.approx(together, abs=1e-5)

    with pytest.raises(UserError, match="no language model"):
        check_complete(model)
    sampled = train("grpo", "grpo", data, reward_model=tmp_path / "scores", max_steps=2, **SAMPLED)
    assert sampled.manifest.metrics["largest_kl"] >= 0


def test_grpo_raises_the_reward_of_the_rules_near_the_starting_model(
    train: Callable[..., Any], tmp_path: Path, rules: Path
) -> None:
    data = make_pairs(tmp_path / "pairs.jsonl", 80)
    made = train("grpo", "out", data, rules=rules, max_steps=16, max_kl=0.5, **SAMPLED)
    rewards = [line["reward"] for line in figures(tmp_path / "out")]
    assert sum(rewards[-4:]) > 1.3 * sum(rewards[:4])
    assert 0 < made.manifest.metrics["largest_kl"] <= 0.5
    with pytest.raises(UserError, match="above --max-kl 1e-06"):
        train("grpo", "far", data, rules=rules, max_steps=16, max_kl=1e-6, **SAMPLED)
    assert not list(tmp_path.glob("*far*"))


def test_ppo_runs_with_one_update_a_step(train: Callable[..., Any], tmp_path: Path, rules: Path) -> None:
    pytest.importorskip("trl.experimental.ppo")
    data = make_pairs(tmp_path / "pairs.jsonl", 4)
    made = train("ppo", "out", data, rules=rules, ppo_epochs=1, max_steps=1, **SAMPLED)
    assert made.manifest.metrics["steps"] == 1


@pytest.mark.parametrize("steps", [2, pytest.param(24, marks=pytest.mark.stress)])
def test_ppo_raises_the_reward_of_the_rules_near_the_starting_model(
    train: Callable[..., Any], tmp_path: Path, rules: Path, steps: int
) -> None:
    """Two steps show that it works, and no more."""
    pytest.importorskip("trl.experimental.ppo")
    data = make_pairs(tmp_path / "pairs.jsonl", 80)
    options = {**SAMPLED, "micro_batch_size": 16, "learning_rate": 4e-3, "max_steps": steps, "max_kl": 1.0}
    made = train("ppo", "out", data, rules=rules, **options)
    lines = figures(tmp_path / "out")
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert 0 <= made.manifest.metrics["largest_kl"] <= 1
    if steps > 2:
        rewards = [line["objective/scores"] for line in lines]
        assert sum(rewards[-4:]) > 1.2 * sum(rewards[:4])
