"""Multiple choice: the figures are those of the plain definition, whatever is shared, batched or cached."""

import json
import math

import numpy as np
import pytest
import torch

from llmforge.errors import UserError
from llmforge.evaluate.models import load_model
from llmforge.evaluate.tasks import likelihood
from llmforge.evaluate.tasks.likelihood import Row, Scorer, shared_length, to_rows
from llmforge.evaluate.tasks.loading import load_tasks
from llmforge.evaluate.tasks.measure import leading_letter, measure_task

STEMS = ("the cat sat on", "the rat ate", "一只猫坐在", "and then the hat", "x")


def ignore(*_: object, **__: object) -> None:
    pass


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A file of five questions in two subjects with a dev split."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, stems in (("pets_dev", STEMS[:2]), ("pets", STEMS)):
        records = [
            {"question": stem, "choices": ["the mat", "a", "the rat and the hat", "垫子"][: 2 + i % 3], "answer": i % 2, "subject": s}
            for s in ("cats", "rats")
            for i, stem in enumerate(stems)
        ]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return folder / "pets.jsonl"


def plainly(loaded, context: str, option: str) -> float:
    ids = loaded.tokenizer.encode([context, context + option])
    both = ids[0][ids[1][1] :].tolist()
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([both])).logits[0, :, : loaded.tokenizer.size].double()
    predicted = logits.log_softmax(-1)
    return sum(predicted[i - 1, both[i]].item() for i in range(int(ids[1][1]), len(both)))


@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
@pytest.mark.parametrize("share", [True, False])
def test_log_likelihoods_are_those_of_the_plain_definition(loaded, batch_tokens, share):
    shots = "the cat sat on the mat and the rat ate the hat. " * 3
    options = [" the mat", " a", " the rat and then the hat"]
    prompts = [(shots + stem, options[: 2 + i % 2]) for i, stem in enumerate(STEMS)]
    scorer = Scorer(loaded, batch_tokens, share)
    scores = scorer.score(to_rows(loaded.tokenizer, prompts), ignore)
    assert scorer.shares is share
    for (context, given), found in zip(prompts, scores, strict=True):
        assert found == pytest.approx([plainly(loaded, context, option) for option in given], abs=2e-4)


def test_where_the_end_of_the_prompt_is_encoded_otherwise_with_an_option_it_counts_as_part_of_it(loaded):
    (row,) = to_rows(loaded.tokenizer, [("the ca", ["t", "n"])])  # "cat" is a token, "can" is none
    assert [len(option) for option in row.options] != [1, 1]
    texts = {loaded.tokenizer.decode([*row.context, *option]) for option in row.options}
    assert texts == {"the cat", "the can"}
    assert shared_length([np.array([1, 2, 3]), np.array([1, 2])]) == 2


def test_a_model_that_gives_other_figures_with_a_shared_prompt_is_computed_the_plain_way(
    tiny_model, capfd, monkeypatch
):
    def refusing(*words, attention_mask=None, **named):
        assert attention_mask is None or attention_mask.dim() == 2
        return inner(*words, **named)

    loaded = load_model(tiny_model)
    inner = loaded.model.model.forward
    rows = to_rows(loaded.tokenizer, [(stem * 9, [" the mat and", " the rat"]) for stem in STEMS])
    expected = Scorer(loaded, 512, share=False).score(rows, ignore)
    monkeypatch.setitem(likelihood.TOLERANCE, 4, -1.0)
    differing = Scorer(loaded, 512)
    found = [differing.score(rows, ignore)]
    loaded.model.model.forward = refusing
    failing = Scorer(loaded, 512)
    found.append(failing.score(rows, ignore))
    assert not differing.shares
    assert not failing.shares
    said = capfd.readouterr().err
    assert "are computed again for each option (its log-likelihoods differ by" in said
    assert "(AssertionError)" in said
    assert (
        np.concatenate(found[0]).tolist()
        == np.concatenate(expected).tolist()
        == np.concatenate(found[1]).tolist()
    )


def test_accuracies_have_standard_errors_by_subject_and_in_the_mean(loaded, questions):
    (task,) = load_tasks([f"pets={questions}"], 2, ("letter", "answer", "bytes", "exact"))
    result = measure_task(loaded, task, Scorer(loaded, 256), ignore)
    assert result["shots"] == 2
    assert [part["questions"] for part in result["subjects"].values()] == [5, 5]
    for scoring in task.scoring:
        parts = [part[scoring] for part in result["subjects"].values()]
        for part in parts:
            p = part["accuracy"]
            assert p * 5 == pytest.approx(round(p * 5))
            assert part["stderr"] == pytest.approx(math.sqrt(p * (1 - p) / 4))
        mean = result["mean"][scoring]
        assert mean["accuracy"] == pytest.approx(sum(part["accuracy"] for part in parts) / 2)
        assert mean["stderr"] == pytest.approx(math.hypot(*(part["stderr"] for part in parts)) / 2)
        assert result["all"][scoring]["accuracy"] == pytest.approx(mean["accuracy"])


def test_a_model_that_was_trained_on_the_answers_knows_them(tiny_model, tmp_path):
    loaded = load_model(tiny_model)
    records = [{"question": stem, "A": "hat", "B": "mat", "answer": "B"} for stem in STEMS]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    (task,) = load_tasks([str(tmp_path / "a.jsonl")], 0, ("letter", "exact"))
    style = task.layout.style(task.subjects[0])
    texts = [style.header("a") + style.listed(q) + style.space + q.letter for q in task.subjects[0].questions]
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=5e-3)
    for _ in range(8):
        for text in texts:
            ids = torch.tensor([[*loaded.tokenizer.encode([text])[0].tolist(), loaded.tokenizer.eos_id]])
            logits = loaded.model(ids).logits[0, -4:-1]  # of the space, the letter, and the end
            torch.nn.functional.cross_entropy(logits, ids[0, -3:]).backward()
            optimizer.step()
            optimizer.zero_grad()
    after = measure_task(loaded, task, Scorer(loaded, 512), ignore)["all"]
    assert (
        measure_task(load_model(tiny_model), task, Scorer(loaded, 512), ignore)["all"]["exact"]["accuracy"]
        == 0
    )
    assert after["letter"] == after["exact"] == {"accuracy": 1.0, "stderr": 0.0}


@pytest.mark.parametrize(
    ("text", "index"),
    [(" B", 1), ("(C) four", 2), ("\nA.", 0), ("【D】", 3), ("Because", -1), ("B2", -1), ("", -1), ("E", -1), ("the B", -1)],
)  # fmt: skip
def test_a_generated_letter_counts_where_the_text_begins_with_it(text, index):
    assert leading_letter(text, "ABCD") == index


def test_prompts_longer_than_the_model_are_named_by_file_and_line(loaded, tmp_path):
    record = {"question": "cat " * 300, "A": "x", "B": "y", "answer": "A"}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    (task,) = load_tasks([str(tmp_path / "a.jsonl")], 0)
    with pytest.raises(
        UserError, match=r"a\.jsonl, line 1: the prompt has .* more than the 256 positions of tiny-llama"
    ):
        measure_task(loaded, task, Scorer(loaded, 512), ignore)


def test_rows_of_one_question_need_no_shared_part(loaded):
    row = Row(
        np.array([5], dtype=np.int32), (np.array([6], dtype=np.int32), np.array([7, 8], dtype=np.int32))
    )
    (scores,) = Scorer(loaded, 64).score([row], ignore)
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()


def test_evaluate_shows_models_side_by_side_and_writes_the_tables(llmforge, tiny_model, questions, tmp_path):
    (tmp_path / "en.txt").write_text("the cat sat")
    words = [
        "evaluate",
        "--model",
        tiny_model,
        "--tasks",
        f"pets={questions}",
        "--shots",
        1,
        "--scoring",
        "letter",
        "bytes",
    ]
    table = tmp_path / "table.md"
    shown = llmforge(*words, "--data", tmp_path / "en.txt", "--output", table).stdout
    assert "pets (1 shots)" in shown
    lines = table.read_text().splitlines()
    assert lines[0] == "| model | en bits/byte | en tokens/char |"
    assert "| pets (1 shots) | questions | tiny-llama letter | tiny-llama bytes |" in lines
    assert any(line.startswith("| mean of subjects |") and "±" in line for line in lines)
    assert llmforge(*words, "--data", tmp_path / "en.txt", "--output", table).stdout == shown
    result = json.loads(llmforge(*words, "--max-questions", 2, "--json").stdout)
    assert result["tiny-llama"]["pets"]["all"]["questions"] == 4
    refused = llmforge("evaluate", "--model", tiny_model, code=2).stderr
    assert "give --data (documents), --tasks (questions), --code (problems), or several" in refused
    assert "--scoring best: must be one of" in llmforge(*words, "--scoring", "best", code=2).stderr
