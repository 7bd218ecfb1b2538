"""Examples of the help and commands of the documentation can be pasted as they stand."""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmforge.cli.app import functions_of
from llmforge.cli.arguments import canonical
from llmforge.cli.command import example_text
from llmforge.cli.compat import spellings_of
from llmforge.recipes.commands import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def commands_in(page: Path) -> Iterator[list[str]]:
    """The words of every llmforge command in code, without those that are cut short by `...`."""
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    lines = re.findall(r"^ {4}llmforge (.*)$|^```\nllmforge (.*)$|`llmforge ([^`]+)`", text, re.M)
    for line in map("".join, lines):
        words = shlex.split(line.partition("     ")[0], comments=True)
        if "..." not in words and words[0] not in ("COMMAND", "命令") and not words[0].startswith("-"):
            yield words


def check_words(words: list[str]) -> None:
    """Fails for a command or an option that does not exist."""
    name = " ".join(words[:2]) if words[0] == "delta" else words[0]
    assert name in COMMANDS, name
    given = words[len(name.split()) :]
    if name == "launch" and "--" in given:
        check_words(given[given.index("--") + 1 :])
        given = given[: given.index("--")]
    declared = COMMANDS[name].all_options()
    flags = {flag for one in declared for flag in (one.flag, f"--no-{one.key}")} | {"--help"}
    for word in canonical(given, declared, spellings_of(name)):
        if word.startswith("--"):
            assert word.partition("=")[0] in flags, f"{name}: {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_documentation_exist(page: Path) -> None:
    for words in commands_in(page):
        check_words(words)


def test_the_documentation_has_commands() -> None:
    assert sum(1 for page in PAGES for _ in commands_in(page)) > 40


def examples() -> dict[str, list[str]]:
    """The words of the example of each command, in pipeline order."""
    return {
        name: shlex.split(example_text(functions_of(name.split()[0])[name]).replace("\\\n", ""))[1:]
        for name in COMMANDS
    }


def test_the_example_of_each_command_names_its_own_options() -> None:
    for name, words in examples().items():
        assert words[: len(name.split())] == name.split()
        check_words(words)


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The inputs that README.md links, with a tiny model."""
    shutil.copytree(tiny_model, tmp_path / "smollm2")
    template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    for name, values in {
        "config.json": {"max_position_embeddings": 512},
        "tokenizer_config.json": {"chat_template": template},
    }.items():
        file = tmp_path / "smollm2" / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    sentences = {
        "zh": "猫坐在垫子上，老鼠吃了帽子。",
        "en": "The cat sat on the mat and the rat ate the hat. ",
    }
    for folder, documents in (("corpus", 400), ("heldout", 4)):
        (tmp_path / folder).mkdir()
        for category, text in sentences.items():
            lines = [
                json.dumps({"target": text * (1 + i % 5), "category": category}, ensure_ascii=False)
                for i in range(documents)
            ]
            (tmp_path / folder / f"{category}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    example = Path("examples") / "preferences"
    shutil.copytree(ROOT / example, tmp_path / example)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_examples_run_one_after_the_other(place: Path, llmforge: Callable[..., object]) -> None:
    for name, words in examples().items():
        if name == "run":  # the demo itself
            assert (ROOT / words[1]).is_file()
        elif name == "launch":  # its processes import torch: one of them is enough here
            llmforge(*words[: words.index("--")], "--dry-run", *words[words.index("--") :])
            llmforge(*words[words.index("--") + 1 :])
        else:
            llmforge(*words)
    assert (place / "restored" / "model.safetensors").read_bytes() == (
        place / "trained" / "model.safetensors"
    ).read_bytes()
