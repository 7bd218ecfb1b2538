"""Conversations in packed rows: the loss that transformers has for each alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import WORDS

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def prepare(llmforge: Any, model: Path, folder: Path, length: int) -> None:
    """Packs `c.jsonl` of `folder` into `data` by `t.jinja`, all in it."""
    command = [
        "prepare-data",
        "--data",
        folder / "c.jsonl",
        "--tokenizer",
        model,
        "--output",
        folder / "data",
    ]
    command += ["--max-length", length, "--bins", 1]
    llmforge(*command, "--format", "chat", "--chat-template", folder / "t.jinja")


def test_the_loss_of_packed_conversations_is_that_of_each_alone(
    llmforge: Any, make_tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from llmforge.tokenizer import load
    from llmforge.tokenizer.chat_template import ChatTemplate

    model = make_tiny_model(tmp_path / "model", max_position_embeddings=512)
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    contents = [" ".join(WORDS[i : i + 3 + i % 5]) for i in range(40)]
    conversations = [
        [{"role": ("user", "assistant")[k % 2], "content": contents[i + k]} for k in range(2 if i % 3 else 4)]
        for i in range(0, 36, 4)
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"messages": c}) + "\n" for c in conversations))
    prepare(llmforge, model, tmp_path, 512)
    rows = json.loads((tmp_path / "data" / "llmforge.json").read_text())["metrics"]["rows"]
    llmforge(
        *("train", "--model", model, "--data", tmp_path / "data", "--output", tmp_path / "out"),
        *("--micro-batch-size", rows, "--max-steps", 1, "--mixed-precision", "fp32", "--save-interval", 0),
    )
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").open()]
    found = next(line["loss"] for line in metrics if "loss" in line)

    template = ChatTemplate(load(model), tmp_path / "t.jinja")
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    total = count = 0.0
    for messages in conversations:
        ids, trained = template.training(messages)
        labels = np.where(trained, ids, -100)
        with torch.no_grad():
            loss = reference(
                torch.tensor(ids[None].astype(np.int64)), labels=torch.tensor(labels[None].astype(np.int64))
            ).loss
        total, count = total + float(loss) * trained[1:].sum(), count + trained[1:].sum()
    assert found == pytest.approx(total / count, abs=1e-5)


@pytest.mark.slow
def test_a_model_follows_a_rule_that_its_answers_taught(
    llmforge: Any, make_tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    import random

    import torch
    from transformers import AutoModelForCausalLM

    from llmforge.tokenizer import load
    from llmforge.tokenizer.chat_template import ChatTemplate

    model = make_tiny_model(tmp_path / "model", max_position_embeddings=512)
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    chance = random.Random(0)

    def said(words: list[str]) -> str:
        return " ".join(chance.choices(words, k=chance.randint(1, 3)))

    asked = list(dict.fromkeys(" ".join(chance.choices(WORDS, k=3)) for _ in range(440)))[:420]
    held = [{"role": "user", "content": question} for question in asked[400:]]
    assert not set(asked[400:]) & set(asked[:400])
    with (tmp_path / "c.jsonl").open("w") as file:
        for question in asked[:400]:
            answer = {"role": "assistant", "content": said(WORDS[:5]) + "!"}
            file.write(json.dumps({"messages": [{"role": "user", "content": question}, answer]}) + "\n")
    prepare(llmforge, model, tmp_path, 128)
    command = ["train", "--model", model, "--data", tmp_path / "data", "--output", tmp_path / "out"]
    command += ["--num-epochs", 4, "--learning-rate", 1e-2, "--micro-batch-size", 4, "--seed", 1]
    llmforge(*command, "--mixed-precision", "fp32", "--save-interval", 0)
    template = ChatTemplate(load(model), tmp_path / "t.jinja")

    def follow(directory: Path) -> int:
        """How many held-out questions get an answer that ends with the mark."""
        made = AutoModelForCausalLM.from_pretrained(directory).eval()
        found = 0
        for question in held:
            ids = torch.tensor([template.encode([question])])
            with torch.inference_mode():
                new = made.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)[
                    0, ids.shape[1] :
                ]
            found += template.tokenizer.decode(new.tolist()).removesuffix("<|endoftext|>").endswith("!")
        return found

    assert follow(model) == 0
    assert follow(tmp_path / "out" / "modeling") >= 18
