"""What happens around a step: a file here for each concern, which holds one subclass of `Callback`."""

from importlib import import_module
from pkgutil import iter_modules

from llmforge.train.callbacks.base import Callback, Run, Stage, Step

__all__ = ["CALLBACKS", "Callback", "Run", "Stage", "Step"]


def _callbacks() -> list[type[Callback]]:
    """Those of all files in the order of their calls."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    found = [kind for module in modules for kind in vars(module).values() if _is_of(kind, module.__name__)]
    return sorted(found, key=lambda kind: (kind.stage, kind.__module__))


def _is_of(kind: object, module: str) -> bool:
    own = isinstance(kind, type) and issubclass(kind, Callback) and kind.__module__ == module
    return own and kind is not Callback


CALLBACKS = _callbacks()
