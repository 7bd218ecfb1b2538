"""Recipes: the commands of a whole project in one YAML file.

    variables:
      output: demo                          # ${output} below; --set output=DIR replaces it
    steps:
      - init-tokenizer:                     # a command, and its flags by name
          source-tokenizer-dir: models/base
          expand-tokens-file: ${output}/pieces.jsonl
          target-tokenizer-dir: ${output}/tokenizer
      - evaluate:
          model: [models/base, "${output}/export"]   # several words
          json: true                        # a flag without a value; false leaves it out

Relative paths are relative to the working directory, as on the command line. Every step is a command that recognises
its own finished output, so running a recipe again goes on where it stopped.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from llmforge.console import say
from llmforge.errors import UsageError, UserError

# The flag of each command that names what it makes.
OUTPUT_FLAGS = (
    "--output",
    "--output-dir",
    "--target-tokenizer-dir",
    "--target-model-path",
    "--data-output-dirs",
    "--data-output-dir",
    "--save-dir",
)


def read_recipe(path: Path, assignments: list[str]) -> list[list[str]]:
    """The commands of a recipe, each as words from `llmforge`'s command name on."""
    import yaml

    if not path.is_file():
        raise UserError(f"{path} does not exist; give the recipe's YAML file.")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict) or not isinstance(recipe.get("steps"), list) or not recipe["steps"]:
        raise UserError(f'{path} needs a list "steps" of at least one step.')
    if unknown := sorted(set(recipe) - {"variables", "steps"}):
        raise UserError(f'{path} has an unknown key "{unknown[0]}"; known are "variables" and "steps".')
    variables = {str(name): str(value) for name, value in (recipe.get("variables") or {}).items()}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or name not in variables:
            raise UsageError(
                f"--set {assignment}: give NAME=VALUE with a variable of {path} ({', '.join(variables) or 'it has none'})."
            )
        variables[name] = os.path.expanduser(value)
    return [_words(path, number, step, variables) for number, step in enumerate(recipe["steps"], 1)]


def run_recipe(commands: list[list[str]], dry_run: bool, debug: bool) -> None:
    """Runs the commands in order, each as its own process, and stops at the first that fails."""
    for number, command in enumerate(commands, 1):
        say(f"\n[{number}/{len(commands)}] {shlex.join(['llmforge', *command])}")
        if dry_run:
            continue
        began = time.monotonic()
        words = [*command, *_go_on(command), *(["--debug"] if debug else [])]
        code = subprocess.run([sys.executable, "-m", "llmforge", *words]).returncode
        if code:
            raise UserError(
                f"step {number} ({command[0]}) ended with exit code {code}; mend it and run the recipe again."
            )
        say(f"[{number}/{len(commands)}] {command[0]}: {time.monotonic() - began:.0f} s")
    if not dry_run:
        _show_outputs(commands)


def _show_outputs(commands: list[list[str]]) -> None:
    made = [
        (command[0], command[command.index(flag) + 1])
        for command in commands
        for flag in OUTPUT_FLAGS
        if flag in command
    ]
    width = max((len(name) for name, _ in made), default=0)
    print("\nmade:", *(f"  {name:<{width}}  {path}" for name, path in made), sep="\n")


def _go_on(command: list[str]) -> list[str]:
    """`train` writes in place for weeks and waits to be told to go on with what it began; a recipe always goes on."""
    if command[0] != "train" or "--load-checkpoint" in command:
        return []
    save_dir = Path(command[command.index("--save-dir") + 1]) if "--save-dir" in command else None
    begun = save_dir is not None and (save_dir / "run.json").is_file()
    return ["--load-checkpoint", "latest"] if begun else []


def _words(path: Path, number: int, step: Any, variables: dict[str, str]) -> list[str]:
    if not isinstance(step, dict) or len(step) != 1:
        raise UserError(f"{path}, step {number}: needs one command name with its flags below it.")
    ((command, flags),) = step.items()
    from llmforge.cli.app import COMMANDS

    if command not in COMMANDS or command == "run":
        raise UserError(f'{path}, step {number}: "{command}" is no llmforge command.')
    words = [str(command)]
    for name, value in (flags or {}).items():
        if value is False or value is None:
            continue
        words.append(f"--{str(name).replace('_', '-')}")
        if value is not True:
            values = value if isinstance(value, list) else [value]
            words.extend(_filled(path, number, str(item), variables) for item in values)
    return words


def _filled(path: Path, number: int, text: str, variables: dict[str, str]) -> str:
    def value_of(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise UserError(f"{path}, step {number}: ${{{match[1]}}} is not among the variables.")
        return variables[match[1]]

    return re.sub(r"\$\{(\w+)\}", value_of, text)
