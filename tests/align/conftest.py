"""Preferences by a rule that a model of two layers learns in seconds: the answer without "hat" is the better one."""

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "then", "the", "rat", "ate"]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:\n{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("templates") / "turns.jinja"
    file.write_text(TEMPLATE)
    return file


def make_pairs(file: Path, number: int, seed: int = 0) -> Path:
    choose = random.Random(seed)
    with file.open("w", encoding="utf-8") as lines:
        for _ in range(number):
            better = [choose.choice(WORDS) for _ in range(choose.randint(3, 6))]
            worse = list(better)
            worse[choose.randrange(len(worse))] = "hat"
            prompt = " ".join(choose.choice(WORDS) for _ in range(3))
            record = {"prompt": prompt, "chosen": " ".join(better), "rejected": " ".join(worse)}
            lines.write(json.dumps(record) + "\n")
    return file


@pytest.fixture
def same_environment() -> Iterator[None]:
    """What transformers and accelerate leave in os.environ would make later tests start processes of their own (tests/warm.py)."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def train(same_environment: None, tiny_model: Path, template: Path, tmp_path: Path) -> Callable[..., Any]:
    """`train("dpo", "out", data, seed=1)` runs the step in this process, and returns what it finished."""
    pytest.importorskip("trl")

    def run(method: str, name: str, data: Path, heldout: tuple[Path, ...] = (), **options: Any) -> Any:
        from llmforge.align.options import PreferenceOptions
        from llmforge.align.run import train_preferences
        from llmforge.options import make

        given = {"model": tiny_model, "chat_template": template, **options}
        given |= {"method": method, "data": [str(data)], "output": tmp_path / name}
        return train_preferences(make(PreferenceOptions, given), [data], heldout)

    return run


def figures(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
