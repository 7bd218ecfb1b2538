"""Recipes: the commands of a whole project in one YAML file.

    variables:
      output: demo                          # ${output} below; --set output=DIR replaces it
    steps:
      - init-tokenizer:                     # a command, and its options by name
          source-tokenizer-dir: models/base
          expand-tokens-file: ${output}/pieces.jsonl
          target-tokenizer-dir: ${output}/tokenizer
      - evaluate:
          model: [models/base, "${output}/export"]   # several words
          json: true                        # an option without a value; false switches it off
      - delta make:                         # a command of a group
          base: models/base

Relative paths are relative to the working directory, as on the command line. Finished steps are skipped, so running a
recipe again goes on where it stopped.
"""

import difflib
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from llmforge.console import say, show
from llmforge.errors import InterruptionError, UsageError, UserError
from llmforge.recipes.child import Ended, run_child
from llmforge.yaml_file import read_yaml

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
STOPPED = InterruptionError.stopped_exit_code


def read_recipe(path: Path, assignments: list[str]) -> list[list[str]]:
    """The commands of a recipe, each as words from `llmforge`'s command name on. Every key is checked."""
    recipe = read_yaml(path)
    if not isinstance(recipe.get("steps"), list) or not recipe["steps"]:
        raise UserError(f'{path} needs a list "steps" of at least one step.')
    if unknown := sorted(set(map(str, recipe)) - {"variables", "steps"}):
        raise UserError(f'{path} has an unknown key "{unknown[0]}"; known are "variables" and "steps".')
    variables = _variables(path, recipe.get("variables") or {})
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or name not in variables:
            raise UsageError(
                f"--set {assignment}: give NAME=VALUE with a variable of {path} ({', '.join(variables) or 'it has none'})."
            )
        variables[name] = os.path.expanduser(value)
    return [_words(path, number, step, variables) for number, step in enumerate(recipe["steps"], 1)]


def run_recipe(commands: list[list[str]], dry_run: bool, debug: bool) -> None:
    """Runs the commands in order, each as its own process, and stops at the first that fails or is stopped."""
    for number, command in enumerate(commands, 1):
        say(f"\n[{number}/{len(commands)}] {shlex.join(['llmforge', *command])}")
        if dry_run:
            continue
        began, at = time.monotonic(), len(_name(command).split())
        words = _for_training(command)
        words = [*words[:at], "--debug", *words[at:]] if debug else words
        ended = run_child([sys.executable, "-m", "llmforge", *words])
        _check_end(ended, f"step {number} ({_name(command)})")
        say(f"[{number}/{len(commands)}] {_name(command)}: {time.monotonic() - began:.0f} s")
    if not dry_run:
        _show_outputs(commands)


def _check_end(ended: Ended, step: str) -> None:
    if ended.asked or (ended.code == STOPPED):
        how = f"by {ended.asked.name}" if ended.asked else "before its end"
        where = "stopped before the next one" if not ended.code else f"{step} was stopped"
        error = InterruptionError(f"{where} {how}; run the recipe again to go on.")
        error.exit_code = 128 + ended.asked if ended.asked else STOPPED
        raise error
    if ended.code:
        raise UserError(
            f"{step} ended with exit code {ended.code}; correct its input and run the recipe again."
        )


def _name(command: list[str]) -> str:
    """The command's own words, without its options and arguments."""
    return " ".join(command[:2]) if command[0] == "delta" else command[0]


def _show_outputs(commands: list[list[str]]) -> None:
    made = [
        (_name(command), command[command.index(flag) + 1])
        for command in commands
        for flag in OUTPUT_FLAGS
        if flag in command
    ]
    width = max((len(name) for name, _ in made), default=0)
    show("\n".join(["\nmade:", *(f"  {name:<{width}}  {path}" for name, path in made)]))


def _for_training(command: list[str]) -> list[str]:
    """The command with what a recipe adds to a training, launched or not.

    `train` writes in place for weeks and waits to be told to go on with what it began; a recipe always goes on. A
    training that was stopped before its end has to be told from one that is finished.
    """
    if command[0] not in ("train", "launch"):
        return command
    if "--stopped-exit-code" not in command:
        command = [command[0], "--stopped-exit-code", str(STOPPED), *command[1:]]
    save_dir = Path(command[command.index("--save-dir") + 1]) if "--save-dir" in command else None
    begun = save_dir is not None and (save_dir / "run.json").is_file()
    return (
        [*command, "--load-checkpoint", "latest"] if begun and "--load-checkpoint" not in command else command
    )


def _variables(path: Path, given: Any) -> dict[str, str]:
    if not isinstance(given, dict):
        raise UserError(f"{path}: variables must be `name: value` lines.")
    for name, value in given.items():
        if isinstance(value, (dict, list)) or value is None:
            raise UserError(f"{path}: the variable {name} must be a word or a number.")
    return {str(name): _text(value) for name, value in given.items()}


def _words(path: Path, number: int, step: Any, variables: dict[str, str]) -> list[str]:
    place = f"{path}, step {number}"
    if not isinstance(step, dict) or len(step) != 1:
        raise UserError(f"{place}: needs one command name with its options below it.")
    ((name, options),) = step.items()
    command = _command(place, str(name))
    if not isinstance(options or {}, dict):
        raise UserError(f"{place}: {name} needs its options as `name: value` lines.")
    words, places = str(name).split(), []
    known = {key: option for option in command.params for key in _keys(option)}
    for key, value in (options or {}).items():
        dashed = str(key).replace("_", "-")
        option = known.get(dashed)
        if option is None:
            near = difflib.get_close_matches(dashed, known, 1)
            raise UserError(
                f"{place}: {name} has no option {key}" + (f"; did you mean {near[0]}?" if near else ".")
            )
        values = value if isinstance(value, list) else [value]
        if any(isinstance(item, (dict, list)) or (item is None and len(values) > 1) for item in values):
            raise UserError(f"{place}: {key} must be a word, a number, true, false, or a list of words.")
        if value is None:
            continue
        if getattr(option, "is_flag", False):
            if not isinstance(value, bool):
                raise UserError(f"{place}: {key} is {value!r}, but must be true or false.")
            off = [flag for flag in option.secondary_opts if flag.startswith("--")]
            words += [f"--{dashed}"] if value else off[:1]
            continue
        if any(isinstance(item, bool) for item in values):
            raise UserError(
                f'{place}: {key} needs a value; if "yes" or "true" is meant as text, put it in quotes.'
            )
        texts = [_filled(place, _text(item), variables) for item in values]
        if option.param_type_name == "argument":
            places += texts
        elif any(text.startswith("-") for text in texts):  # the next word would be taken for an option
            words += [f"--{dashed}={text}" for text in texts]
        else:
            words += [f"--{dashed}", *texts]
    if any(text.startswith("-") for text in places):  # as in the command of launch
        return [*words, "--", *places]
    at = len(str(name).split())
    return [*words[:at], *places, *words[at:]]


def _command(place: str, name: str) -> Any:
    from llmforge.cli.app import COMMANDS, load_command

    first, *rest = name.split() or [""]
    if first not in COMMANDS or first == "run":
        near = difflib.get_close_matches(first, COMMANDS, 1)
        raise UserError(
            f'{place}: "{name}" is no llmforge command' + (f"; did you mean {near[0]}?" if near else ".")
        )
    command = load_command(first)
    group = getattr(command, "commands", None)
    if group is not None:
        if len(rest) != 1 or rest[0] not in group:
            raise UserError(f"{place}: {first} needs one of {', '.join(f'{first} {one}' for one in group)}.")
        return group[rest[0]]
    if rest:
        raise UserError(f'{place}: "{name}" is no llmforge command.')
    return command


def _keys(option: Any) -> list[str]:
    if option.param_type_name == "argument":
        return [option.name.replace("_", "-")]
    return [flag[2:] for flag in option.opts if flag.startswith("--")]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _filled(place: str, text: str, variables: dict[str, str]) -> str:
    def value_of(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise UserError(f"{place}: ${{{match[1]}}} is not among the variables.")
        return variables[match[1]]

    return re.sub(r"\$\{(\w+)\}", value_of, text)
