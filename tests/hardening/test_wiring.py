"""Recipes that wire themselves: an input that is not given is the last one that a step before wrote or worked from."""

import json
from pathlib import Path

import pytest

from llmforge.cli.compat import SPELLINGS
from llmforge.errors import UsageError, UserError
from llmforge.recipes.recipe import Step, read_recipe
from llmforge.recipes.running import choose
from llmforge.recipes.schema import recipe_schema

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "smollm2-zh" / "recipe.yaml"


@pytest.fixture
def read(tmp_path):
    def steps(text: str) -> list[Step]:
        (tmp_path / "r.yaml").write_text(f"steps:\n{text}")
        return read_recipe(tmp_path / "r.yaml", [], SPELLINGS)

    return steps


def test_the_demo_is_short_and_every_step_has_what_it_had_when_all_was_written_out():
    assert len(DEMO.read_text(encoding="utf-8").splitlines()) <= 30
    steps = read_recipe(DEMO, ["inputs=in", "output=out"], SPELLINGS)
    assert [step.inputs for step in steps] == [
        {"tokenizer": "in/smollm2"},
        {"tokenizer": "in/smollm2", "pieces": "out/pieces.jsonl"},
        {"model": "in/smollm2", "tokenizer": "out/tokenizer"},
        {"tokenizer": "out/tokenizer"},
        {"model": "out/resized", "data": "out/data"},
        {"checkpoint": "out/stage"},
        {"model": "out/trained"},
        {"tokenizer": "in/smollm2"},
        {"model": "in/smollm2", "data": "out/data-old"},
        {"checkpoint": "out/stage-old"},
        {"model": "in/smollm2, out/resized, out/trained, out/trained-old"},
        {"paths": "out/stage, out/generated.txt, out/stage-old, out/comparison.md"},
    ]


def test_what_is_given_counts_and_is_worked_from_afterwards(read):
    steps = read(
        "- init-model: {model: base, tokenizer: mine, output: grown}\n"
        "- prepare-data: {data: texts, output: d1}\n"
        "- prepare-data: {data: texts, output: d2, tokenizer: other}\n"
        "- train: {output: t1, data: d1}\n"
        "- generate: {model: elsewhere, prompt: x}\n"  # makes nothing that a later step works from
        "- train: {output: t2}\n"
        "- evaluate: {data: texts}\n"
        "- delta make: {output: d}\n"
    )
    assert [step.inputs for step in steps[1:4]] == [
        {"tokenizer": "mine"},
        {"tokenizer": "other"},
        {"model": "grown", "data": "d1"},
    ]
    assert steps[5].inputs == {"model": "t1/modeling", "data": "d1"}
    assert steps[6].inputs == {"model": "base, t2/modeling"}
    assert steps[7].inputs == {"base": "base", "model": "t2/modeling"}


@pytest.mark.parametrize("form", ["gguf", "adapter"])
def test_a_gguf_file_or_an_adapter_is_no_model_to_work_from(read, form):
    steps = read(
        "- init-model: {model: base, tokenizer: k, output: g}\n"
        "- train: {data: d, output: t}\n"
        "- export: {output: e}\n"
        f"- export: {{output: other-1, format: {form}}}\n"
        "- evaluate: {data: texts}\n"
        "- generate: {prompt: x}\n"
        f"- export: {{output: other-2, format: {form}, checkpoint: t0}}\n"
        "- export: {output: e2}\n"
        "- train: {data: d, output: t3}\n"
    )
    assert [step.inputs.get("model") for step in steps[4:6]] == ["base, e", "e"]
    assert steps[7].inputs == {"checkpoint": "t"}
    assert steps[8].inputs["model"] == "e2"


def test_a_launched_training_is_a_training(read):
    launched = "- launch: {command: [train, --model, m, --data, d, %s]}\n- export: {output: e}\n"
    assert read(launched % "--save_dir=t")[1].inputs == {"checkpoint": "t"}
    with pytest.raises(
        UserError, match=r"step 3 \(export\): --checkpoint is missing. No step before it wrote a training"
    ):
        read("- train: {model: m, data: d, output: t}\n" + launched % "--config, c.yaml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "- train: {output: t}",
            r"step 1 \(train\): --model and --data are missing. No step before it wrote a model.",
        ),
        (
            "- train: {model: m, data: d, output: t, trainable: lora}",
            r"step 1 \(train\): --trainable lora needs",
        ),
        ("- train: {model: m, data: d, output: t, lr: fast}", "step 1: lr is 'fast', but must be a number"),
        (
            "- learn-pieces: {tokenizer: m, num-pieces: 0, data: d, output: o}",
            "num-pieces 0: must be at least 1",
        ),
        (
            "- prepare-data: {data: d, tokenizer: t, output: o, mix: {zh: -1}}",
            "mix zh=-1 is not CATEGORY=WEIGHT",
        ),
        ("- prepare-data: {data: d, tokenizer: t, output: o, holdout: 2}", "holdout 2 is not a fraction"),
    ],
)
def test_a_step_that_cannot_run_is_refused_before_the_first_one_does(read, text, sentence):
    with pytest.raises(UserError, match=sentence):
        read(text)


def test_steps_can_be_chosen(read):
    steps = read(
        "- init-model: {model: b, tokenizer: t, output: g}\n- prepare-data: {data: x, output: d}\n"
        "- train: {output: t1}\n- train: {output: t2}\n- export: {output: e}\n"
    )

    def numbers(start=None, only=None):
        return [step.number for step in choose(steps, start, only)]

    assert numbers() == [1, 2, 3, 4, 5]
    assert numbers(start="4") == [4, 5]
    assert numbers(start="prepare_data") == [2, 3, 4, 5]
    assert numbers(only="export") == [5]
    with pytest.raises(UsageError, match="--only train: steps 3, 4 have this name; give the number"):
        numbers(only="train")
    with pytest.raises(
        UsageError, match="--from 6: the recipe has no such step; its steps are 1 init-model, 2"
    ):
        numbers(start="6")


def test_a_dry_run_shows_a_table(llmforge, tmp_path):
    (tmp_path / "e").mkdir()
    (tmp_path / "r.yaml").write_text(
        f"steps:\n- train: {{model: m, data: d, output: t}}\n- export: {{output: {tmp_path / 'e'}}}\n"
    )
    done = llmforge("run", tmp_path / "r.yaml", "--dry-run", "--only", "export")
    row = next(line for line in done.stdout.splitlines() if " export " in line)
    assert "checkpoint: t*" in row
    assert str(tmp_path / "e") in row
    assert "exists" in row
    assert "[2/2] llmforge export" in done.stderr
    assert " train " not in done.stdout


def test_the_schema_knows_every_option(llmforge):
    schema = json.loads(llmforge("run", "--schema").stdout)
    assert schema == json.loads(json.dumps(recipe_schema(SPELLINGS)))
    train = schema["$defs"]["train"]["properties"]
    assert train["max-steps"]["anyOf"][0] == {"type": "integer", "minimum": 1}
    assert train["attention"]["anyOf"][0] == {"enum": ["auto", "flash", "flash3", "flex", "sdpa", "varlen"]}
    assert train["learning-rate"]["default"] == 3e-4
    assert train["lr"]["deprecated"]
    assert "delta make" in schema["$defs"]
    both = llmforge("run", DEMO, "--schema", code=2)
    assert both.stderr == "error: give a RECIPE, or --schema.\n"
