"""Tasks of multiple choice: a file of layouts/ each, and its name is what `--tasks NAME=PATH` takes. Imports no torch."""

from importlib import import_module
from pkgutil import iter_modules

from llmforge.evaluate.tasks import layouts
from llmforge.evaluate.tasks.layout import Layout


def names() -> list[str]:
    return sorted(module.name for module in iter_modules(layouts.__path__))


def find(name: str) -> Layout:
    """The layout called `name`, which is one of `names()`."""
    found: Layout = import_module(f"{layouts.__name__}.{name}").LAYOUT
    return found
