"""Recipes: the commands of a whole project in one YAML file.

    variables:
      output: demo                          # ${output} below; --set output=DIR replaces it
    steps:
      - learn-pieces:                       # a command, and its options by name
          tokenizer: models/base
          data: texts
          num-pieces: 1000
          output: ${output}/pieces.jsonl
      - init-tokenizer:                     # its tokenizer and pieces are those of the step before
          output: ${output}/tokenizer
      - evaluate:
          model: [models/base, "${output}/export"]   # several words
          json: true                        # an option without a value; false switches it off
      - delta make:                         # a command of a group
          base: models/base

An input that is not given is the last of its kind that a step before wrote or worked from (`wiring`). Relative paths are
relative to the working directory, as on the command line.
"""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.errors import UsageError, UserError
from llmforge.options import Option, convert, named
from llmforge.recipes.commands import COMMANDS, GROUPS, build
from llmforge.recipes.wiring import Wiring
from llmforge.yaml_file import read_yaml

Spellings = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Step:
    """A step as the command it runs. `words` follow `llmforge`; `inputs` and `outputs` are the values of the options
    that read and write files, by key; `wired` are the inputs that steps before gave.
    """

    number: int
    name: str
    words: tuple[str, ...]
    inputs: dict[str, str]
    outputs: dict[str, str]
    wired: tuple[str, ...]


def read_recipe(path: Path, assignments: Sequence[str], spellings: Spellings) -> list[Step]:
    """The steps of a recipe. Every key and value is checked, and so is each step as a whole.

    `assignments` are NAME=VALUE of variables; `spellings` are other spellings of options, by command.
    """
    recipe = read_yaml(path)
    if not isinstance(recipe.get("steps"), list) or not recipe["steps"]:
        raise UserError(f'{path} needs a list "steps" with at least one step.')
    if unknown := sorted(set(map(str, recipe)) - {"variables", "steps"}):
        near = difflib.get_close_matches(unknown[0], ["variables", "steps"], 1)
        hint = f"did you mean {near[0]}?" if near else 'known are "variables" and "steps".'
        raise UserError(f'{path} has an unknown key "{unknown[0]}"; {hint}')
    variables = _variables(path, recipe.get("variables") or {})
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or name not in variables:
            raise UsageError(
                f"--set {assignment}: give NAME=VALUE with a variable of {path} ({', '.join(variables) or 'it has none'})."
            )
        variables[name] = os.path.expanduser(value)
    wiring = Wiring()
    steps = []
    for number, step in enumerate(recipe["steps"], 1):
        place = f"{path}, step {number}"
        try:
            steps.append(_step(place, number, step, variables, wiring, spellings))
        except UsageError as error:
            sentence = str(error)
            raise UserError(sentence if sentence.startswith(place) else f"{place}: {sentence}") from error
    return steps


def _step(
    place: str,
    number: int,
    step: Any,
    variables: Mapping[str, str],
    wiring: Wiring,
    spellings: Spellings,
) -> Step:
    if not isinstance(step, dict) or len(step) != 1:
        raise UserError(f"{place}: needs one command name with its options below it.")
    ((written, given),) = step.items()
    name = _command(place, str(written))
    if not isinstance(given or {}, dict):
        raise UserError(f"{place}: {written} needs its options as `name: value` lines.")
    declared, spelled = COMMANDS[name].all_options(), spellings.get(name, {})
    texts: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for one, key, value in named(declared, given or {}, place, name, spelled).values():
        if value is None:
            continue
        filled = _filled(place, value, variables)
        values[one.name] = convert(one, filled, f"{place}: {key}")
        texts[one.name] = _texts(filled)
    wired = []
    for one in declared:
        if one.reads and one.name not in texts and (found := wiring.find(one)):
            texts[one.name], values[one.name] = found, convert(one, found if one.is_list else found[0], place)
            wired.append(one.key)
    try:
        build(name, values, spelled)
    except UserError as error:
        lacking = [one.reads for one in declared if one.reads and one.required and one.name not in values]
        hint = f" No step before it wrote a {lacking[0]}." if lacking else ""
        raise UserError(f"{place} ({name}): {error}{hint}") from error
    wiring.add(declared, texts)
    return Step(
        number,
        name,
        tuple(_words(name, declared, texts)),
        {one.key: ", ".join(texts[one.name]) for one in declared if one.reads and one.name in texts},
        {one.key: texts[one.name][0] for one in declared if one.writes and one.name in texts},
        tuple(wired),
    )


def _command(place: str, written: str) -> str:
    name = " ".join(written.split())
    if name in COMMANDS and name != "run":
        return name
    first = name.partition(" ")[0]
    if first in GROUPS:
        leaves = [one for one in COMMANDS if one.startswith(f"{first} ")]
        raise UserError(f"{place}: {first} needs one of {', '.join(leaves)}.")
    near = difflib.get_close_matches(name, [one for one in COMMANDS if one != "run"], 1)
    raise UserError(
        f'{place}: "{written}" is not an llmforge command' + (f"; did you mean {near[0]}?" if near else ".")
    )


def _words(name: str, declared: Sequence[Option], texts: Mapping[str, list[str]]) -> list[str]:
    """The command line of a step: the flags in the order of the recipe, arguments first."""
    words: list[str] = []
    places: list[str] = []
    by_name = {one.name: one for one in declared}
    for field_name, values in texts.items():
        one = by_name[field_name]
        if one.positional:
            places += values
        elif one.is_switch:
            off = [] if one.default is False else [f"--no-{one.key}"]
            words += [one.flag] if values == ["true"] else off
        elif any(text.startswith("-") for text in values):  # the next word would be taken for an option
            words += [f"{one.flag}={text}" for text in values]
        else:
            words += [one.flag, *values]
    if any(text.startswith("-") for text in places):  # as in the command of launch
        return [*name.split(), *words, "--", *places]
    return [*name.split(), *places, *words]


def _texts(value: Any) -> list[str]:
    """A value of the recipe as words of the command line."""
    if isinstance(value, dict):
        return [f"{name}={number}" for name, number in value.items()]
    return [_text(item) for item in (value if isinstance(value, list) else [value])]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _variables(path: Path, given: Any) -> dict[str, str]:
    if not isinstance(given, dict):
        raise UserError(f"{path}: variables must be `name: value` lines.")
    for name, value in given.items():
        if isinstance(value, (dict, list)) or value is None:
            raise UserError(f"{path}: the variable {name} must be a word or a number.")
    return {str(name): _text(value) for name, value in given.items()}


def _filled(place: str, value: Any, variables: Mapping[str, str]) -> Any:
    """`value` with its ${variables}, and those of the items of a list."""

    def value_of(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise UserError(
                f"{place}: ${{{match[1]}}} is not a variable of the recipe; define it under variables."
            )
        return variables[match[1]]

    if isinstance(value, list):
        return [_filled(place, item, variables) for item in value]
    if isinstance(value, dict):
        return {name: _filled(place, item, variables) for name, item in value.items()}
    return re.sub(r"\$\{(\w+)\}", value_of, value) if isinstance(value, str) else value
