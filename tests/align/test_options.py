"""What train-preferences refuses before it begins."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from llmforge.align.options import PreferenceOptions
from llmforge.align.run import train_preferences
from llmforge.errors import UserError
from llmforge.options import make

GIVEN: dict[str, Any] = {"method": "dpo", "model": Path("m"), "data": ["d"], "output": Path("o")}


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"rules": Path("r")}, "--rules is for --method grpo and ppo"),
        ({"max_kl": 1.0}, "--max-kl is for"),
        ({"grpo_generations": 4}, "--grpo-generations is for --method grpo"),
        ({"method": "grpo"}, "--reward-model or --rules"),
        ({"method": "grpo", "rules": Path("r"), "eval_data": ["e"]}, "--eval-data"),
        ({"method": "grpo", "rules": Path("r"), "beta": 0.0, "max_kl": 1.0}, "--beta above 0"),
        ({"method": "reward", "beta": 0.1}, "--beta has no effect"),
        ({"method": "ipo"}, "must be one of dpo, grpo, ppo, reward"),
        ({"data": []}, "--data is missing"),
    ],
)
def test_options_that_do_not_go_together_are_refused_by_name(more: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        make(PreferenceOptions, {**GIVEN, **more})


def test_without_trl_one_sentence_says_how_to_install_it(
    tiny_model: Path, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    given = {**GIVEN, "model": tiny_model, "chat_template": template, "output": tmp_path / "out"}
    with pytest.raises(UserError, match=r"needs TRL.*pip install 'llmforge\[align\]'"):
        train_preferences(make(PreferenceOptions, given), [data])
    assert not (tmp_path / "out").exists()


def test_the_recipe_of_the_example_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmforge.align.rules import read_rules
    from llmforge.recipes.recipe import read_recipe

    example = Path(__file__).parents[2] / "examples" / "preferences"
    monkeypatch.chdir(example.parents[1])
    first, shown, *_ = read_recipe(example / "recipe.yaml", [], {})
    assert first.name == "train-preferences"
    assert shown.inputs["model"] == "preferences/dpo/modeling"
    assert read_rules(example / "rules.yaml").reward("It is green indeed.", 5) == pytest.approx(4 / 12 + 0.5)


def test_one_file_adds_a_method(tmp_path: Path) -> None:
    """In a copy of the package, as an author would have it."""
    import shutil
    import subprocess

    import llmforge

    shutil.copytree(Path(llmforge.__file__).parent, tmp_path / "llmforge")
    (tmp_path / "llmforge" / "align" / "methods" / "longest.py").write_text(
        "from llmforge.align.methods.dpo import Dpo\n\n\nclass Longest(Dpo):\n"
        "    text = 'a method of one file'\n    learning_rate = 0.5\n\n\nMETHOD = Longest()\n"
    )
    command = [sys.executable, "-m", "llmforge", "train-preferences", "--help"]
    shown = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert "a method of one file" in " ".join(shown.stdout.split())
    assert "0.5 for longest" in " ".join(shown.stdout.split())
    assert (
        subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys, llmforge.align.options as o; o.methods(); assert not {'torch', 'trl'} & set(sys.modules)",
            ],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        ).returncode
        == 0
    )


def test_a_recipe_does_not_go_on_with_a_reward_model(tmp_path: Path) -> None:
    from llmforge.recipes.recipe import read_recipe

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "steps:\n"
        "  - train-preferences: {method: dpo, model: m, data: d, output: first}\n"
        "  - train-preferences: {method: reward, data: d, output: scores}\n"
        "  - train-preferences: {method: grpo, data: d, output: last, reward-model: scores/modeling}\n"
        "  - generate: {prompt: a}\n"
    )
    steps = read_recipe(recipe, [], {})
    assert [one.inputs["model"] for one in steps] == ["m", *["first/modeling"] * 2, "last/modeling"]
