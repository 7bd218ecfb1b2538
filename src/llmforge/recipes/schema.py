"""The JSON schema of recipes, for editors: every command with its options."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from llmforge.options import Option
from llmforge.recipes.commands import COMMANDS, Command

TEXT = {"type": "string"}
VARIABLE = {
    "type": "string",
    "pattern": r"\$\{\w+\}|^[^$]*$",
}  # words are converted, once variables are filled in


def recipe_schema(spellings: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The schema; other spellings of options are in it as deprecated."""
    names = [name for name in COMMANDS if name != "run"]
    steps = [
        {
            "type": "object",
            "properties": {name: {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]}},
            "required": [name],
            "additionalProperties": False,
        }
        for name in names
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llmforge recipe",
        "type": "object",
        "properties": {
            "variables": {
                "type": "object",
                "additionalProperties": {"type": ["string", "number", "boolean"]},
            },
            "steps": {"type": "array", "minItems": 1, "items": {"oneOf": steps}},
        },
        "required": ["steps"],
        "additionalProperties": False,
        "$defs": {name: _command_schema(COMMANDS[name], spellings.get(name, {})) for name in names},
    }


def _command_schema(command: Command, spellings: Mapping[str, str]) -> dict[str, Any]:
    properties = {one.key: option_schema(one) for one in command.all_options()}
    for spelling, key in spellings.items():
        properties[spelling] = {**properties[key], "deprecated": True}
    return {
        "description": command.line,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def option_schema(one: Option) -> dict[str, Any]:
    """The schema of the value of one option; null is as if it were not given."""
    import msgspec

    kind = str if one.item is Path else one.item
    if one.least is not None or one.most is not None:
        kind = Annotated[kind, msgspec.Meta(ge=one.least, le=one.most)]
    value: dict[str, Any] = msgspec.json.schema(kind)
    forms = [value]
    if value.get("type") != "string" and not one.is_switch:
        forms.append(VARIABLE)
    elif one.parse is not None:
        forms.append({"type": "number"})
    if one.is_list:
        forms.append({"type": "array", "items": {"anyOf": forms.copy()}})
    if one.many:
        forms.append({"type": "object", "additionalProperties": {"type": ["number", "string"]}})
    found: dict[str, Any] = {"description": one.help_line(), "anyOf": [*forms, {"type": "null"}]}
    if one.default_text() and one.parse is None and not one.required:
        found["default"] = one.default if not isinstance(one.default, Path) else str(one.default)
    return found
