"""Ways to merge models: a file each, which sets `METHOD`. Its name, with dashes, is what `--method` takes. Listing them
imports no numpy.
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from llmforge.errors import UsageError
from llmforge.weights.merging.base import Method


@cache
def methods() -> dict[str, Method]:
    """Every method by its name."""
    files = sorted(module.name for module in iter_modules(__path__) if module.name != "base")
    return {name.replace("_", "-"): import_module(f"{__name__}.{name}").METHOD for name in files}


def find(name: str) -> Method:
    """The method called `name`; raises `UsageError`."""
    if name not in methods():
        raise UsageError(f"--method {name}: must be one of {', '.join(methods())}.")
    return methods()[name]


def described() -> str:
    """The names, each with its line of help."""
    return "; ".join(f"{name}: {method.text}" for name, method in methods().items())
