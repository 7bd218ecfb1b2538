"""One declaration per option.

The options of a command are a frozen dataclass, `...Options`, beside what it configures. A field made by `option` is
a flag, a key of YAML files and recipes, an argument of the manifest, an entry of the JSON schema, and a line of
docs/reference.md. `group` takes in the fields of another such class, for what several commands share.
"""

import difflib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from llmforge.errors import UsageError
from llmforge.yaml_file import read_yaml

T = TypeVar("T")
PANEL = "Options"


def option(
    text: str,
    default: Any = MISSING,
    *,
    panel: str = PANEL,
    decides: bool = True,
    argument: str = "",
    choices: Sequence[str] = (),
    least: float | None = None,
    most: float | None = None,
    parse: Callable[[str, Any], Any] | None = None,
    metavar: str = "",
    shown: str | None = None,
    positional: bool = False,
    bare: bool = False,
    many: bool = False,
    commas: bool = True,
    reads: str = "",
    writes: str = "",
) -> Any:
    """A field that is an option; without `default` it must be given. `text` is its line of help.

    `decides`: it decides the bytes of the result, so it belongs to the identity of the output, as `argument` of the
    manifest (default: the field's name). `choices` are the values that a text may have. `least` and `most` bound numbers.
    `parse(place, value)` reads what is written in a way of its own, such as 0.5%; its default is then `shown` in help.
    `positional`: words that have no flag. `bare`: words may stand without its flag, too. `many`: several words that `parse` makes one value of. `commas`: words of a list are divided at commas.
    In recipes an option that `reads` a kind of output defaults to the last one of that kind, and one that `writes`
    names such an output.
    """
    metadata = {name: value for name, value in locals().items() if name != "default"}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def group(kind: type[T], *, argument: str = "", **defaults: Any) -> T:
    """A field that holds the options of `kind`, another dataclass of them; `defaults` replace its own. With `argument`
    they are one argument of the manifest, a mapping of this name.
    """
    metadata = {"group": kind, "defaults": defaults, "argument": argument}
    made: T = field(default_factory=lambda: kind(**defaults), metadata=metadata)
    return made


def same_as(kind: type, name: str, **changed: Any) -> Any:
    """The field `name` of the option class `kind` once more, `changed` in what `option` takes beside the default."""
    (entry,) = (entry for entry in fields(kind) if entry.name == name)
    metadata = {**entry.metadata, **changed}
    if entry.default_factory is not MISSING:
        return field(default_factory=entry.default_factory, metadata=metadata)
    return field(default=entry.default, metadata=metadata)


@dataclass(frozen=True)
class Option:
    """One option as its field declares it. `path` names the groups it lies in, `kind` is its type without None."""

    name: str
    path: tuple[str, ...]
    kind: Any
    default: Any
    text: str
    panel: str
    decides: bool
    argument: str
    least: float | None
    most: float | None
    parse: Callable[[str, Any], Any] | None
    metavar: str
    shown: str | None
    positional: bool
    bare: bool
    many: bool
    commas: bool
    reads: str
    writes: str

    @property
    def key(self) -> str:
        """The key of YAML files and recipes."""
        return self.name.rstrip("_").replace("_", "-")

    @property
    def flag(self) -> str:
        return f"--{self.key}"

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def is_switch(self) -> bool:
        return self.kind is bool

    @property
    def is_list(self) -> bool:
        return self.many or get_origin(self.kind) is list

    @property
    def choices(self) -> tuple[str, ...]:
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def item(self) -> Any:
        """The type of one word: of an item, where the option is a list."""
        if self.parse is not None:
            return str
        return get_args(self.kind)[0] if get_origin(self.kind) is list else self.kind

    def value_name(self) -> str:
        """What stands for the value in help: PATH, INTEGER, [a|b]."""
        if self.metavar or self.is_switch:
            return self.metavar
        if self.choices:
            return f"[{'|'.join(self.choices)}]"
        name = {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(self.item, "TEXT")
        return f"{name}..." if self.is_list else name

    def default_text(self) -> str:
        """The default as it would be written; empty where there is none, or the help says what it is."""
        if self.shown is not None:
            return self.shown
        if self.default in (None, MISSING, "", False) or isinstance(self.default, (list, dict)):
            return "" if self.default != 0 or isinstance(self.default, bool) else "0"
        return str(self.default).lower() if self.is_switch else str(self.default)

    def help_line(self) -> str:
        """The line of help, with the default."""
        default = self.default_text()
        if self.required:
            return f"{self.text} (required)"
        return f"{self.text} (default: {default})" if default and "(default" not in self.text else self.text


_KNOWN: dict[Any, tuple[Option, ...]] = {}


def options_of(kind: Any) -> tuple[Option, ...]:
    """Every option of a dataclass, those of its groups in their place."""
    if kind not in _KNOWN:
        _KNOWN[kind] = _declared(kind)
    return _KNOWN[kind]


def _declared(kind: Any) -> tuple[Option, ...]:
    hints = get_type_hints(kind)
    found: list[Option] = []
    for entry in fields(kind):
        metadata = dict(entry.metadata)
        if "group" in metadata:
            for one in options_of(metadata["group"]):
                values = {**one.__dict__, "path": (entry.name, *one.path)}
                if one.name in metadata["defaults"]:
                    values["default"] = metadata["defaults"][one.name]
                found.append(Option(**values))
        elif "text" in metadata:
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            metadata["argument"] = metadata["argument"] or entry.name
            kind = _without_none(hints[entry.name])
            if choices := metadata.pop("choices"):
                kind = Literal[tuple(choices)]
            found.append(Option(entry.name, (), kind, default, **metadata))
    return tuple(found)


def _without_none(kind: Any) -> Any:
    """T for `T | None`."""
    if get_origin(kind) not in (Union, UnionType):
        return kind
    left = [part for part in get_args(kind) if part is not type(None)]
    return left[0] if len(left) == 1 else Union[tuple(left)]  # noqa: UP007


class Options:
    """Base of option classes: holds numbers to their bounds and texts to their choices, whoever gives them."""

    def __post_init__(self) -> None:
        for one in options_of(type(self)):
            if not one.path:
                check(one, getattr(self, one.name), one.flag)

    def arguments(self) -> dict[str, Any]:
        """What decides the result, as arguments of a manifest."""
        found: dict[str, Any] = {}
        for entry in fields(self):  # type: ignore[arg-type]
            value = getattr(self, entry.name)
            if "group" in entry.metadata:
                name = entry.metadata["argument"]
                found |= {name: value.arguments()} if name else value.arguments()
            elif entry.metadata.get("decides"):
                found[entry.metadata["argument"] or entry.name] = value
        return found


def value_of(options: Any, one: Option) -> Any:
    """The value that `options` have for `one` of them."""
    for name in (*one.path, one.name):
        options = getattr(options, name)
    return options


def check(one: Option, value: Any, place: str) -> None:
    """A `UsageError` where `value` breaks the bounds or the choices of its declaration."""
    if one.choices and value is not None and value not in one.choices:
        raise UsageError(f"{place} {value}: must be one of {', '.join(filter(None, one.choices))}.")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or one.parse is not None:
        return
    least, most = one.least, one.most
    if not math.isfinite(value):
        raise UsageError(f"{place} {value}: must be a finite number.")
    if (least is None or value >= least) and (most is None or value <= most):
        return
    if least is not None and most is not None:
        raise UsageError(f"{place} {value}: must be between {least:g} and {most:g}.")
    raise UsageError(
        f"{place} {value}: must be at {f'least {least:g}' if least is not None else f'most {most:g}'}."
    )


def convert(one: Option, value: Any, place: str) -> Any:
    """`value`, a word of the command line or a value of a YAML file, as the type of `one`; `place` names it in messages."""
    if one.is_list:
        if isinstance(value, Mapping) and one.many:
            value = [f"{name}={number}" for name, number in value.items()]
        items = [
            _plain(one, item, place) for item in (value if isinstance(value, (list, tuple)) else [value])
        ]
        texts = [str(item) for item in items]
        texts = words(texts) if one.commas else texts
        return one.parse(place, texts) if one.parse else [_cast(one, text, place) for text in texts]
    plain = _plain(one, value, place)
    if one.parse is not None:
        return one.parse(place, str(plain))
    made = _cast(one, plain, place)
    check(one, made, place)
    return made


def _plain(one: Option, value: Any, place: str) -> Any:
    """A word, number or switch; a `UsageError` for what a YAML file may hold besides."""
    if isinstance(value, bool) and not one.is_switch:
        raise UsageError(
            f'{place} needs a value; to use "{str(value).lower()}" or "yes" as text, put it in quotes.'
        )
    if isinstance(value, (Mapping, list, tuple)) or value is None:
        a_list = ", or a list of words" if one.is_list else ""
        raise UsageError(f"{place} must be a word, a number, true or false{a_list}.")
    return value


def _cast(one: Option, value: Any, place: str) -> Any:
    kind = one.item
    if kind is Path:
        return Path(os.path.expanduser(str(value)))
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise UsageError(f"{place} is {value!r}, but must be true or false.")
    if kind is str or one.choices:
        return str(value)
    import msgspec  # only where there is a number to read

    number = value.strip().replace("_", "") if isinstance(value, str) else value
    try:
        return msgspec.convert(number, kind, strict=False)
    except msgspec.ValidationError:
        name = "a whole number" if kind is int else "a number"
        raise UsageError(f"{place} is {value!r}, but must be {name}.") from None


def make(kind: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass `kind` of converted values by the names of fields; what is not among them has its default."""
    if lacking := [one for one in options_of(kind) if one.required and one.name not in values]:
        names = " and ".join(one.metavar or one.key if one.positional else one.flag for one in lacking)
        raise UsageError(f"{names} {'is' if len(lacking) == 1 else 'are'} missing.")
    given: dict[str, Any] = {}
    for entry in fields(kind):  # type: ignore[arg-type]
        if "group" in entry.metadata:
            given[entry.name] = make(entry.metadata["group"], {**entry.metadata["defaults"], **values})
        elif entry.name in values and "text" in entry.metadata:
            given[entry.name] = values[entry.name]
    return kind(**given)


def named(
    options: Iterable[Option], raw: Mapping[Any, Any], place: str, what: str, spellings: Mapping[str, str]
) -> dict[str, tuple[Option, str, Any]]:
    """The keys of a YAML mapping with their options and values, by the names of fields.

    Dashes may be underscores; `spellings` are other spellings of keys. Raises `UsageError` for a key that no option
    has, or that is given twice.
    """
    known = {one.key: one for one in options}
    found: dict[str, tuple[Option, str, Any]] = {}
    for key, value in raw.items():
        dashed = str(key).replace("_", "-")
        one = known.get(spellings.get(dashed, dashed))
        if one is None:
            near = difflib.get_close_matches(dashed, [*known, *spellings], 1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise UsageError(f"{place}: {what} has no option {key}{hint}")
        if one.name in found:
            raise UsageError(f"{place} sets {one.flag} twice, once as {key}.")
        found[one.name] = (one, str(key), value)
    return found


def read_file(kind: type, name: str, file: Path, spellings: Mapping[str, str]) -> dict[str, Any]:
    """The values that the YAML file of --config has for the options of `kind`, those of command `name`, by field."""
    place = f"--config {file}"
    found = named(options_of(kind), read_yaml(file, "--config"), place, name, spellings)
    return {
        field_name: convert(one, value, f"{place}: {key}")
        for field_name, (one, key, value) in found.items()
        if value is not None
    }


def words(values: Sequence[str]) -> list[str]:
    """The items of options that take several words, comma-separated words, or both.

    A word is not divided where it is the path of something as a whole, or behind `LABEL=`.
    """
    found: list[str] = []
    for value in values:
        if value and _is_path(value):
            found.append(value)
        else:
            found += [item for item in value.split(",") if item]
    return found


def _is_path(word: str) -> bool:
    return any(os.path.lexists(os.path.expanduser(path)) for path in (word, word.partition("=")[2]) if path)


def load_class(place: str) -> type:
    """The class at `package.module:Name`."""
    module, _, name = place.partition(":")
    found: type = getattr(import_module(module), name)
    return found


@dataclass(frozen=True)
class Debug:
    """What every command takes."""

    debug: bool = option("Show the traceback of an error.", False, decides=False)


@dataclass(frozen=True)
class Result:
    """What every command takes that shows a result."""

    json: bool = option("Print the result as one JSON object.", False, decides=False)
    debug: bool = option("Show the traceback of an error.", False, decides=False)


SEED = "Random seed."
OVERWRITE = "Replace an output that llmforge made before."
TRUST_REMOTE_CODE = "Run Python files that come with the model (auto_map). They can do anything that you can."
TEXTS_HELP = "files (.jsonl, .json, .parquet, .txt, ...; docs/data.md), directories, or datasets on the Hub"
