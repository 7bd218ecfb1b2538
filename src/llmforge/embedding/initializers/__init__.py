"""Ways to make the rows of new tokens: a file each, which sets `INITIALIZER`. Its name, with dashes, is what `--init` and
`--head-init` take. Listing them imports neither numpy nor torch.
"""

from collections.abc import Callable
from dataclasses import make_dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from llmforge.embedding.initializers.base import Initializer
from llmforge.options import Options, group


@cache
def initializers() -> dict[str, Initializer]:
    """Every initialization by its name."""
    files = sorted(module.name for module in iter_modules(__path__) if module.name != "base")
    return {name.replace("_", "-"): import_module(f"{__name__}.{name}").INITIALIZER for name in files}


def names(which: Callable[[Initializer], bool]) -> tuple[str, ...]:
    """The names of those for which `which` is true."""
    return tuple(name for name, one in initializers().items() if which(one))


def described(which: Callable[[Initializer], bool]) -> str:
    """Those names, each with its line of help."""
    return "; ".join(f"{name}: {initializers()[name].text}" for name in names(which))


def option_groups() -> type[Options]:
    """An option class with a group for each initialization that has options, by its name."""
    kinds = {name: one.options for name, one in initializers().items() if one.options}
    return make_dataclass(
        "InitializerOptions",
        [(name.replace("-", "_"), kind, group(kind)) for name, kind in kinds.items()],
        bases=(Options,),
        frozen=True,
    )
