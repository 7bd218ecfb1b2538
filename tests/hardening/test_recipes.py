"""Recipes, YAML files and signals to `run`: whatever a file holds is refused in a sentence, nothing is orphaned."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llmforge.cli.compat import SPELLINGS
from llmforge.errors import UserError
from llmforge.options import read_file
from llmforge.recipes.recipe import read_recipe as read
from llmforge.train.options import TrainOptions
from llmforge.yaml_file import read_yaml
from warm import heed_signals

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=8,
)
STEP = st.dictionaries(
    st.sampled_from(["train", "generate", "delta make", "delta", "inspect-data", "run", "x"]),
    st.dictionaries(st.sampled_from(["model", "lr", "overwrite", "dataset", "prompt", "x", "debug"]), VALUES)
    | VALUES,
    max_size=2,
)


@pytest.mark.fuzz
@given(st.one_of(VALUES, st.fixed_dictionaries({"steps": st.lists(STEP), "variables": VALUES})))
def test_any_yaml_is_a_recipe_or_refused(tmp_path_factory, value):
    file = tmp_path_factory.mktemp("recipes") / "recipe.yaml"
    file.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    try:
        commands = read_recipe(file, [])
    except UserError:
        return
    assert all(isinstance(word, str) for command in commands for word in command)


def read_recipe(file: Path, assignments: list[str]) -> list[list[str]]:
    """The command lines of a recipe, whose options may have any spelling."""
    return [list(step.words) for step in read(file, assignments, SPELLINGS)]


@pytest.mark.fuzz
@given(st.binary(max_size=60) | st.text(alphabet="&*<>[]{}:,-?! ab\n\"'%|", max_size=60).map(str.encode))
def test_any_bytes_are_flags_or_refused(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("flags") / "flags.yaml"
    file.write_bytes(data)
    with contextlib.suppress(UserError):
        read_file(TrainOptions, "train", file, SPELLINGS["train"])


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{here}: &{here} [{','.join(['*' + before] * 9)}]\n"
    for before, here in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = (
    "a: &a {"
    + ",".join(f"k{i}: 1" for i in range(9))
    + "}\n"
    + "".join(
        f"{here}: &{here} {{<<: [{','.join(['*' + before] * 9)}]}}\n"
        for before, here in zip("abcdefgh", "bcdefghi", strict=True)
    )
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (BOMB, "more than 100,000 values"),
        ("[" * 100_000, "nested too deeply"),
        ("a: " + "x" * (1 << 20), "more than 1 MB"),
        ("a: &a\n  k: *a\n", "more than 100,000 values"),
        ("lr: 1\nlr: 2\n", "the key lr is given twice"),
        ("? [a]\n: b\n", "a key must be a word"),
        ("a: 2024-13-45\n", "is not YAML"),
        ("\x00", "is not YAML"),
    ],
)
def test_hostile_yaml_is_refused_at_once(tmp_path, text, sentence):
    (tmp_path / "x.yaml").write_text(text)
    began = time.process_time()
    with pytest.raises(UserError, match=sentence):
        read_yaml(tmp_path / "x.yaml", "--config")
    assert time.process_time() - began < 5  # not a measurement: a bomb takes hours


def test_merges_cannot_multiply_without_end(tmp_path):
    (tmp_path / "x.yaml").write_text(MERGES)
    began = time.process_time()
    with contextlib.suppress(
        UserError
    ):  # raised with PyYAML before 6.0.4, which repeats what is merged twice
        assert read_yaml(tmp_path / "x.yaml")["i"] == {f"k{i}": 1 for i in range(9)}
    assert time.process_time() - began < 5


def test_a_pipe_is_no_recipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is not a regular file"):
        read_yaml(tmp_path / "pipe")


def test_anchors_and_merges_serve_recipes(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "variables: {model: m}\nsteps:\n"
        "- generate: &first {model: '${model}', prompt: a, seed: 1}\n"
        "- generate: {<<: *first, prompt: b, seed: 2}\n"
    )
    first, second = read_recipe(tmp_path / "r.yaml", [])
    assert first == ["generate", *("--model", "m"), *("--prompt", "a"), *("--seed", "1")]
    assert second[second.index("--prompt") + 1] == "b"


def test_false_switches_off_whatever_is_on_by_default(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "steps: [{train: {pretrained: m, dataset: d, save_dir: s, embedding-decay: false, background_save: false, "
        "overwrite: false, dry-run: true}}]"
    )
    assert read_recipe(tmp_path / "r.yaml", [])[0] == [
        *("train", "--model", "m", "--data", "d", "--output", "s"),
        *("--no-embedding-decay", "--no-background-save", "--dry-run"),
    ]


def test_every_boolean_of_every_command_can_be_switched_off():
    from llmforge.cli.app import COMMANDS, load_command

    for name in COMMANDS:
        command = load_command(name)
        for one in getattr(command, "commands", {name: command}).values():
            for option in one.params:
                if getattr(option, "is_flag", False) and option.name != "help":
                    assert option.secondary_opts, f"{name}: {option.name}"


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ("[{train: {pretraned: a}}]", "train has no option pretraned; did you mean pretrained?"),
        ("[{generte: {}}]", "did you mean generate?"),
        ("[{delta: {base: x}}]", "delta needs one of delta make, delta apply"),
        ("[{generate: {prompt: yes}}]", "put it in quotes"),
        ("[{generate: {prompt: {a: b}}}]", "prompt must be a word"),
        ("[{generate: {json: 3}}]", "json is 3, but must be true or false"),
        ("[{generate: [a]}]", "needs its options as `name: value` lines"),
        ("[{evaluate: {model: [a, [b]]}}]", "model must be a word"),
        ("[{evaluate x: {}}]", '"evaluate x" is not an llmforge command'),
    ],
)
def test_a_wrong_step_is_named_before_the_first_one_runs(tmp_path, steps, sentence):
    (tmp_path / "r.yaml").write_text(f"steps: {steps}")
    with pytest.raises(UserError, match="step 1") as error:
        read_recipe(tmp_path / "r.yaml", [])
    assert sentence in str(error.value)


def test_a_recipe_can_give_arguments_groups_and_values_that_begin_with_a_dash(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "steps:\n- inspect-data: {dataset: [a, b], samples: 2}\n"
        "- delta make: {base: b, target: t, output: o}\n- generate: {model: m, prompt: '- a list'}\n"
    )
    assert read_recipe(tmp_path / "r.yaml", []) == [
        ["inspect-data", "--data", "a", "b", "--samples", "2"],
        ["delta", "make", "--base", "b", "--model", "t", "--output", "o"],
        ["generate", "--model", "m", "--prompt=- a list"],
    ]


@pytest.fixture
def training_recipe(tiny_model: Path, tiny_tokenizer: Path, llmforge, tmp_path: Path) -> Path:
    """A training of many steps, and a step after it that must not run when the training is stopped."""
    (tmp_path / "a.jsonl").write_text('{"text": "the cat sat on the mat and then the rat"}\n' * 400)
    llmforge(
        *("prepare-data", "--data-input-dirs", tmp_path / "a.jsonl", "--tokenizer-dir", tiny_tokenizer),
        *("--data-output-dir", tmp_path / "data", "--max-length", 64, "--num-spliced-dataset-bins", 1),
    )
    recipe = {
        "steps": [
            {
                "train": {
                    "pretrained": str(tiny_model),
                    "dataset": str(tmp_path / "data"),
                    "save-dir": str(tmp_path / "run"),
                    "num-epochs": 100_000,
                    "mixed-precision": "fp32",
                }
            },
            {"export": {"checkpoint": str(tmp_path / "run"), "output-dir": str(tmp_path / "never")}},
        ]
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return tmp_path / "recipe.yaml"


def start(recipe: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-m", "llmforge", "run", str(recipe)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=heed_signals,
    )
    metrics = recipe.parent / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def children(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.stress),
        pytest.param(signal.SIGHUP, marks=pytest.mark.stress),
    ],
)
def test_a_signal_to_run_stops_the_training_with_its_checkpoint(training_recipe, number):
    process = start(training_recipe)
    (child,) = children(process.pid)
    process.send_signal(number)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"step 1 (train) was stopped by {number.name}; run the recipe again to continue." in messages
    assert not Path(f"/proc/{child}").exists()
    assert list((training_recipe.parent / "run").glob("epoch-*/llmforge.json"))
    assert not (training_recipe.parent / "never").exists()


@pytest.mark.slow
def test_a_killed_run_leaves_no_training_behind(training_recipe):
    process = start(training_recipe)
    (child,) = children(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert list((training_recipe.parent / "run").glob("epoch-*/llmforge.json"))
    process.communicate()


@pytest.mark.slow
def test_run_does_not_go_on_with_a_training_that_its_time_limit_stopped(training_recipe, llmforge):
    recipe = yaml.safe_load(training_recipe.read_text())
    recipe["steps"][0]["train"]["time-limit"] = "0.5"
    training_recipe.write_text(yaml.safe_dump(recipe, sort_keys=False))
    done = llmforge("run", training_recipe, code=75)
    assert "step 1 (train) was stopped before its end; run the recipe again to continue." in done.stderr
    assert not (training_recipe.parent / "never").exists()
    words = [f"--{k}={v}" for k, v in recipe["steps"][0]["train"].items()]
    done = llmforge("train", *words, "--load-checkpoint", "latest", "--json")
    state = json.loads(done.stdout)
    assert state["state"] == "stopped"
    assert state["reason"] == "--time-limit"
    assert 0 < state["step"] < state["total"]
    assert Path(state["checkpoint"]).is_dir()


def test_a_launched_training_is_resumed_and_told_from_a_stopped_one(tmp_path):
    from llmforge.recipes.running import for_training

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "r.yaml").write_text(
        f"steps: [{{launch: {{nproc-per-node: 2, command: [train, --save-dir, {tmp_path / 'run'}]}}}}]"
    )
    (command,) = read_recipe(tmp_path / "r.yaml", [])
    train = ["--", "train", "--save-dir", str(tmp_path / "run")]
    assert command == ["launch", "--nproc-per-node", "2", *train]
    assert for_training(command) == [
        *("launch", "--stopped-exit-code", "75", "--nproc-per-node", "2"),
        *(*train, "--load-checkpoint", "latest"),
    ]


def test_the_exit_code_of_a_stopped_training_is_launch_s_to_give(llmforge):
    done = llmforge("launch", "--", "train", "--stopped-exit-code", 7, "--save-dir", "x", code=2)
    assert "give it before the --" in done.stderr
