"""The formats that can be read, by the suffix of a file: a file here with `FORMAT` adds one."""

from importlib import import_module
from pkgutil import iter_modules

from llmforge.corpus.formats.base import Format

_MODULES = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
FORMATS: dict[str, Format] = {
    suffix: module.FORMAT
    for module in _MODULES
    if hasattr(module, "FORMAT")
    for suffix in module.FORMAT.suffixes
}


def format_of(kind: str) -> Format:
    """The format of files with the suffix `kind`."""
    return FORMATS[kind]
