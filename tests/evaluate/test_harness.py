"""Tasks of lm-evaluation-harness: its own figures, whoever loads and scores the model."""

import json
from pathlib import Path

import pytest
import transformers

from llmforge.errors import UserError
from llmforge.evaluate.models import load_model
from llmforge.evaluate.tasks import harness
from llmforge.evaluate.tasks.likelihood import Scorer

STEMS = ("the cat sat on", "the rat ate", "一只猫坐在", "and then the hat", "x", "the mat")
CHOICES = ("the mat", "a", "the rat and the hat ", "垫子", "hat")

needs_harness = pytest.mark.skipif(not harness.version(), reason="lm-eval is not installed")


@pytest.fixture
def tasks(tmp_path: Path) -> dict[str, Path]:
    """A task of each kind that the harness has, with its documents beside it."""
    documents = tmp_path / "documents.json"
    records = [
        {"stem": stem, "choices": list(CHOICES[: 2 + i % 4]), "answer": i % 2, "last": "the hat"}
        for i, stem in enumerate(STEMS)
    ]
    documents.write_text("".join(json.dumps(one) + "\n" for one in records))
    kinds = {
        "choice": 'output_type: multiple_choice\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer',
        "last": 'output_type: loglikelihood\ndoc_to_target: " {{last}}"',
        "whole": 'output_type: loglikelihood_rolling\ndoc_to_target: "{{stem}} {{last}}"',
        "made": "output_type: generate_until\ndoc_to_target: last\ngeneration_kwargs:\n  until: ['.']\n  max_gen_toks: 5",
    }
    metrics = {"choice": ["acc", "acc_norm"], "last": ["perplexity", "acc"], "made": ["exact_match"]}
    metrics["whole"] = ["word_perplexity", "bits_per_byte"]
    found = {}
    for name, kind in kinds.items():
        listed = "".join(f"\n  - metric: {metric}" for metric in metrics[name])
        found[name] = tmp_path / f"{name}.yaml"
        found[name].write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {documents}\n"
            f'test_split: test\nfewshot_split: test\ndoc_to_text: "{{{{stem}}}}"\n{kind}\nmetric_list:{listed}\n'
        )
    return found


@needs_harness
@pytest.mark.parametrize("name", ["choice", "last", "whole", "made"])
def test_figures_are_those_of_the_harness_itself(name, tasks, tiny_model) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    loaded = load_model(tiny_model)
    found = harness.measure_harness(
        loaded, str(tasks[name]), None, None, Scorer(loaded, 512), lambda *_: None
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    model.resize_token_embeddings(loaded.tokenizer.size)  # without the rows of padding, as llmforge counts
    peer = HFLM(
        pretrained=model, tokenizer=transformers.AutoTokenizer.from_pretrained(tiny_model), batch_size=2
    )
    manager = TaskManager(include_path=str(tasks[name].parent), include_defaults=False)
    theirs = lm_eval.simple_evaluate(model=peer, tasks=[name], task_manager=manager, bootstrap_iters=100)[
        "results"
    ][name]
    (ours,) = found["rows"].values()
    assert found["documents"] == {name: len(STEMS)}
    assert ours
    for metric, value in ours.items():
        assert value["value"] == pytest.approx(theirs[f"{metric},none"], rel=1e-4)


@needs_harness
def test_tables_show_metrics_with_errors_and_models_side_by_side(
    tasks, llmforge, tiny_model, tmp_path
) -> None:
    words = ["evaluate", "--model", tiny_model, "--tasks", f"lm-eval:{tasks['choice']}", "--shots", 1]
    table = tmp_path / "table.md"
    assert "lm-eval:choice (1 shots)" in llmforge(*words, "--output", table).stdout
    lines = table.read_text().splitlines()
    assert lines[0] == "| lm-eval:choice (1 shots) | tiny-llama |"
    assert any(line.startswith("| choice acc_norm | ") and "±" in line for line in lines)
    llmforge(*words, "--output", table)
    assert "--overwrite" in llmforge(*words[:-1], 0, "--output", table, code=1).stderr


@needs_harness
def test_what_the_harness_cannot_ask_is_said(tasks, tiny_model) -> None:
    with pytest.raises(UserError, match=r"no task of that name; did you mean hellaswag\?"):
        harness.check(["helaswag"])
    with pytest.raises(UserError, match="there is no such file"):
        harness.check([str(tasks["choice"].with_name("other.yaml"))])
    loaded = load_model(tiny_model)
    scorer = Scorer(loaded, 512)
    tasks["made"].write_text(tasks["made"].read_text().replace("max_gen_toks: 5", "max_gen_toks: 500"))
    with pytest.raises(UserError, match=r"lm-eval:made, document 0: the prompt has .* 256 positions"):
        harness.measure_harness(loaded, str(tasks["made"]), None, None, scorer, print)
    tasks["last"].write_text(tasks["last"].read_text().replace("documents.json", "nowhere.json"))
    with pytest.raises(UserError, match="lm-evaluation-harness cannot ask it"):
        harness.measure_harness(loaded, str(tasks["last"]), None, None, scorer, print)


def test_without_the_harness_a_sentence_says_how_to_get_it(monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(
        UserError, match=r"lm-eval:mmlu needs lm-evaluation-harness; run: pip install 'llmforge\[eval\]'"
    ):
        harness.check(["mmlu"])
    assert harness.divide(["a=b.csv", "lm-eval:mmlu"]) == (["a=b.csv"], ["mmlu"])
