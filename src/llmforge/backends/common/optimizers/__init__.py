"""The optimizers of the native engines: a file each, and its name is what `--optimizer` takes. Imports no torch."""

from importlib import import_module
from pkgutil import iter_modules

from llmforge.backends.common.optimizers.base import Optimizer
from llmforge.errors import UsageError


def names() -> list[str]:
    return sorted(module.name for module in iter_modules(__path__) if module.name != "base")


def find(name: str) -> Optimizer:
    """The optimizer called `name`; raises `UsageError`."""
    if name not in names():
        raise UsageError(f"--optimizer {name}: must be one of {', '.join(names())}.")
    found: Optimizer = import_module(f"{__name__}.{name}").OPTIMIZER
    return found
