"""Ways to train on preferences: a file each, which sets `METHOD`. Its name is what `train-preferences --method` takes.
Listing them imports neither torch nor TRL.
"""

from dataclasses import make_dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from llmforge.align.methods.base import Method
from llmforge.options import Options, group


@cache
def methods() -> dict[str, Method]:
    """Every method by its name."""
    files = sorted(module.name for module in iter_modules(__path__) if module.name != "base")
    return {name.replace("_", "-"): import_module(f"{__name__}.{name}").METHOD for name in files}


def described() -> str:
    """The names, each with its line of help."""
    return "; ".join(f"{name}: {method.text}" for name, method in methods().items())


def option_groups() -> type[Options]:
    """An option class with a group for each method that has options, by its name."""
    kinds = {name: one.options for name, one in methods().items() if one.options}
    return make_dataclass(
        "MethodOptions",
        [(name.replace("-", "_"), kind, group(kind)) for name, kind in kinds.items()],
        bases=(Options,),
        frozen=True,
    )
