"""DPO: its loss is TRL's and the paper's, and pairs that it has not seen are told apart."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import TEMPLATE, figures, make_pairs

pytestmark = pytest.mark.slow
ONE_BATCH = {"micro_batch_size": 6, "learning_rate": 1e-3, "schedule": "constant", "gradient_clipping": 0.0}


def test_the_loss_of_a_step_is_trls_and_that_of_the_paper(
    train: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    import datasets
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data = make_pairs(tmp_path / "pairs.jsonl", 6)
    train("dpo", "one", data, max_steps=1, **ONE_BATCH)
    train("dpo", "two", data, max_steps=2, **ONE_BATCH)
    at_step_2 = figures(tmp_path / "two")[1]["loss"]

    records = [json.loads(line) for line in data.read_text().splitlines()]
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "one" / "modeling")
    before = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert at_step_2 == pytest.approx(_plain_loss(after, before, tokenizer, records), abs=1e-5)

    tokenizer.chat_template = TEMPLATE
    turns = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    rows = [{name: [{"role": role, "content": one[name]}] for name, role in turns.items()} for one in records]
    arguments = trl.DPOConfig(
        str(tmp_path / "trl"), use_cpu=True, bf16=False, per_device_eval_batch_size=6, report_to="none"
    )
    theirs = trl.DPOTrainer(
        model=after,
        ref_model=before,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        eval_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    assert at_step_2 == pytest.approx(theirs.evaluate()["eval_loss"], abs=1e-5)


def _plain_loss(after: Any, before: Any, tokenizer: Any, records: list[dict[str, str]]) -> float:
    """Equation 7 of arXiv 2305.18290 with beta 0.1, one answer at a time."""
    import torch

    def probability(model: Any, ids: list[int], begin: int) -> torch.Tensor:
        logits = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return logits.gather(1, torch.tensor(ids[1:])[:, None])[begin - 1 :, 0].sum()

    losses = []
    with torch.no_grad():
        for one in records:
            asked = f"user:\n{one['prompt']}<|end|>assistant:\n"
            prompt, *both = (
                tokenizer(text)["input_ids"]
                for text in (asked, f"{asked}{one['chosen']}<|end|>", f"{asked}{one['rejected']}<|end|>")
            )
            gains = [
                probability(after, ids, len(prompt)) - probability(before, ids, len(prompt)) for ids in both
            ]
            losses.append(-torch.nn.functional.logsigmoid(0.1 * (gains[0] - gains[1])))
    return float(torch.stack(losses).mean())


def test_pairs_that_were_held_out_are_told_apart_and_the_model_works(
    train: Callable[..., Any], llmforge: Callable[..., Any], tmp_path: Path
) -> None:
    data, held = make_pairs(tmp_path / "pairs.jsonl", 96), make_pairs(tmp_path / "held.jsonl", 40, seed=1)
    finished = train("dpo", "out", data, (held,), learning_rate=1e-3, micro_batch_size=16, num_epochs=4)
    metrics = finished.manifest.metrics
    assert metrics["heldout"]["accuracy"] >= 0.95
    assert metrics["heldout"]["data"] == {
        "read": 40,
        "used": 40,
        "rejected": {"documents": 0, "reasons": {}},
    }
    assert [one["step"] for one in figures(tmp_path / "out")] == list(range(1, 25))
    assert train("dpo", "out", data, (held,), learning_rate=1e-3, micro_batch_size=16, num_epochs=4).skipped

    (tmp_path / "prompts.jsonl").write_text('{"text": "the cat"}\n')
    llmforge("export", "--checkpoint", tmp_path / "out", "--output", tmp_path / "exported")
    llmforge("generate", "--model", tmp_path / "out" / "modeling", "--prompt", "the", "--max-new-tokens", 4)
    assert (tmp_path / "exported" / "chat_template.jinja").read_text() == TEMPLATE
