"""The command line's frame: flags as users write them, one sentence for an error, a fast start."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmforge.cli.app import COMMANDS
from llmforge.cli.arguments import canonical, dashed
from llmforge.errors import UsageError
from llmforge.options import options_of, words
from llmforge.train.options import TrainOptions

HEAVY = ("torch", "transformers", "datasets", "pyarrow", "tokenizers", "numpy")


@pytest.mark.parametrize(
    "words",
    [
        ["learn-pieces", "--tokenizer", "link", "--data", "x", "--num-pieces", "9", "--output", "o"],
        ["prepare-data", "--data", "link", "--tokenizer", "{tokenizer}", "--output", "o"],
        ["verify", "link"],
        ["report", "link", "--output", "o.md"],
    ],
)
def test_a_link_that_leads_nowhere_is_called_one(words, llmforge, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("gone")
    done = llmforge(*(word.format(tokenizer=tiny_tokenizer) for word in words), code=1)
    assert done.stderr == "error: link is a symbolic link to gone, which does not exist; check it.\n"


def test_help_lists_every_command_in_pipeline_order(llmforge):
    text = llmforge("--help").stdout
    positions = [text.index(f"\n  {name} ") for name in COMMANDS]
    assert positions == sorted(positions)
    assert "1. Tokenizer" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_ends_with_an_example(llmforge, name):
    text = llmforge(name, "--help").stdout
    example = text[text.rindex("Example:") :].split()
    assert example[1:3] == ["llmforge", name]
    assert example[3:]
    assert "─" not in example  # nothing follows it


@pytest.mark.parametrize(
    "words", [["delta", "make"], ["delta", "apply"], *([name] for name in COMMANDS if name != "delta")]
)
def test_every_command_can_show_the_traceback(llmforge, words):
    assert "--debug" in llmforge(*words, "--help").stdout


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readmes_name_every_command(name):
    text = (Path(__file__).parents[2] / name).read_text(encoding="utf-8")
    named = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert set(named) == set(COMMANDS)


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom llmforge.cli.main import main\n"
        f"sys.argv = ['llmforge', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_both_entry_points_start(llmforge):
    assert llmforge("--version").stdout.startswith("llmforge ")
    script = subprocess.run(
        [Path(sys.executable).parent / "llmforge", "--version"], capture_output=True, text=True
    )
    assert script.stdout == llmforge("--version").stdout


def test_wrong_use_exits_with_2(llmforge):
    assert "No such command" in llmforge("conquer", code=2).stderr
    assert "--recipes" in llmforge("run", "--recipes", "x", code=2).stderr


def test_an_error_is_one_sentence_and_debug_shows_the_traceback(llmforge, tmp_path):
    done = llmforge("run", tmp_path / "absent.yaml", code=1)
    assert done.stderr == f"error: {tmp_path}/absent.yaml does not exist; give the recipe's YAML file.\n"
    debug = subprocess.run(
        [sys.executable, "-m", "llmforge", "run", str(tmp_path / "absent.yaml"), "--debug"],
        capture_output=True,
        text=True,
    )
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


def test_flags_may_be_spelled_with_underscores():
    assert dashed("--source_tokenizer_dir") == "--source-tokenizer-dir"
    assert dashed("--out_dir=a_b/c_d") == "--out-dir=a_b/c_d"
    assert dashed("a_b") == "a_b"
    assert dashed("-w") == "-w"


TRAIN = options_of(TrainOptions)


def test_a_repeatable_option_takes_words_up_to_the_next_option():
    assert canonical(["--data", "a", "b", "c", "--learning-rate", "1"], TRAIN) == [
        *("--data", "a", "--data", "b", "--data", "c", "--learning-rate", "1")
    ]
    assert canonical(["--learning-rate", "1", "x"], TRAIN) == ["--learning-rate", "1", "x"]
    assert canonical(["--data", "a", "--", "b"], TRAIN) == ["--data", "a", "--", "b"]


@given(st.lists(st.text(alphabet="ab", min_size=1), min_size=1))
def test_repeated_flags_keep_every_word_in_order(values):
    repeated = canonical(["--data", *values], TRAIN)
    assert repeated[1::2] == values
    assert set(repeated[::2]) == {"--data"}


def test_a_value_stays_as_it_is_and_a_flag_is_none():
    assert canonical(["--time-limit", "--a_b"], TRAIN) == ["--time-limit", "--a_b"]
    assert canonical(["--output=--data"], TRAIN) == ["--output=--data"]
    for line in (
        ["--output", "--data", "x"],
        ["--data", "--output", "x"],
        ["--output"],
        ["--output", "--", "x"],
    ):
        with pytest.raises(UsageError, match=f"{line[0]} needs a value"):
            canonical(line, TRAIN)


def test_lists_may_be_separated_by_commas():
    assert words(["a,b", "c"]) == ["a", "b", "c"]


def test_recipes_fill_variables_and_skip_false_flags(llmforge, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "variables: {model: m}\nsteps:\n"
        "  - evaluate: {model: ['${model}', other dir], data: 'a=b c.txt', json: true, debug: false}\n"
    )
    done = llmforge("run", recipe, "--set", "model=x", "--dry-run")
    assert "[1/1] llmforge evaluate --model x 'other dir' --data 'a=b c.txt' --json\n" in done.stderr


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("steps: [", "is not YAML"),
        ("variables: {}", 'needs a list "steps"'),
        ("steps: [{conquer: {}}]", 'step 1: "conquer" is not an llmforge command'),
        ("steps: [{generate: {prompt: '${x}'}}]", "step 1: ${x} is not a variable of the recipe"),
        ("steps: [generate]", "step 1: needs one command name"),
        ("stages: []\nsteps: [{generate: {}}]", 'unknown key "stages"'),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_runs(llmforge, tmp_path, text, sentence):
    (tmp_path / "recipe.yaml").write_text(text)
    assert sentence in llmforge("run", tmp_path / "recipe.yaml", code=1).stderr


def test_a_recipe_stops_at_the_first_step_that_fails(llmforge, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "steps: [{generate: {model: nowhere, prompt: x}}, {generate: {model: nowhere, prompt: never}}]"
    )
    done = llmforge("run", tmp_path / "recipe.yaml", code=1)
    assert "error: nowhere is not a Hugging Face model directory" in done.stderr
    assert "step 1 (generate) ended with exit code 1" in done.stderr
    assert "never" not in done.stderr


def test_json_results_stand_alone_on_standard_output(llmforge, tiny_model, tmp_path):
    (tmp_path / "a.txt").write_text("一二三 one two three")
    done = llmforge("evaluate", "--model", tiny_model, "--data", f"a={tmp_path / 'a.txt'}", "--json")
    result = json.loads(done.stdout)
    assert result[tiny_model.name]["a"]["characters"] == 17


def test_two_spellings_of_a_flag_are_both_named(llmforge, tmp_path):
    done = llmforge("train", "--batch_size", 2, "--micro-batch-size=3", "--save-dir", tmp_path, code=2)
    assert done.stderr == (
        "error: --micro-batch-size and --batch-size are the same flag; give one of them.\n"
    )
