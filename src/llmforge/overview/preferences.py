"""Trainings on preferences: options, figures and curves. The names of figures are TRL's."""

from collections.abc import Mapping
from typing import Any

from llmforge.overview.training import Training
from llmforge.report.blocks import Block, Curves, Heading, Points, Table

# (figures, title, axis): a method records one of the figures, or none.
CHARTS = (
    (("loss", "loss/policy_avg"), "Loss of the method", "loss"),
    (("rewards/margins", "margin"), "Margin of chosen over rejected answers", "margin"),
    (("rewards/accuracies", "accuracy"), "Pairs in which the chosen answer wins", "fraction of pairs"),
    (("reward", "objective/scores"), "Reward", "reward"),
    (("kl", "objective/kl_per_token"), "KL divergence from the starting model", "nats per token"),
    (("learning_rate", "lr"), "Learning rate of train-preferences", "learning rate"),
)
LABELS = {
    "heldout_accuracy": "held-out pairs in which the chosen answer wins",
    "heldout_loss": "loss on held-out pairs",
    "heldout_margin": "margin on held-out pairs",
    "largest_kl": "largest KL divergence from the starting model, nats per token",
}


def preferences(trainings: Mapping[str, Training]) -> list[Block]:
    """All of them side by side, by their names."""
    facts = [_facts(one) for one in trainings.values()]
    known = dict.fromkeys(name for own in facts for name in own)
    names = sorted(known, key=lambda name: name.startswith("--"))  # options last
    rows = [[name, *(own.get(name, "") for own in facts)] for name in names]
    blocks: list[Block] = [Heading("Trainings on preferences"), Table(["", *trainings], rows)]
    for figures, title, axis in CHARTS:
        lines: dict[str, Points] = {}
        for name, one in trainings.items():
            found = next(filter(None, map(one.metrics.of, figures)), None)
            if found and (line := found.line(by_tokens=False)):
                lines[name] = line
        if lines:
            blocks.append(Curves(title, "step", axis, lines))
    return blocks


def measured(training: Training) -> dict[str, Any]:
    """What the manifest has of LABELS."""
    held = training.counters.get("heldout") or {}
    found = {f"heldout_{name}": value for name, value in held.items()}
    found["largest_kl"] = training.counters.get("largest_kl")
    return {name: found[name] for name in LABELS if found.get(name) is not None}


def _facts(training: Training) -> dict[str, str]:
    data = training.counters.get("data", {})
    facts = {
        "directory": str(training.path),
        "started from": training.start or "",
        "steps": f"{training.counters.get('steps', 0):,}",
        "records used": f"{data.get('used', 0):,} of {data.get('read', 0):,}",
    }
    facts |= {LABELS[name]: f"{value:.4f}" for name, value in measured(training).items()}
    return facts | {
        f"--{name.replace('_', '-')}": str(value)
        for name, value in training.arguments.items()
        if value is not None
    }
