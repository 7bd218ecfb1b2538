"""The backends by name: llmforge's own, and those of other packages.

Another package adds one with an entry point of the group `llmforge.backends`, which names a `Backend`:

    [project.entry-points."llmforge.backends"]
    mine = "my_package.backend:MINE"
"""

from functools import cache
from importlib.metadata import entry_points

from llmforge.backends import colossalai, torch
from llmforge.backends.backend import Backend
from llmforge.errors import UsageError

AUTO = "auto"
OWN: dict[str, Backend] = {backend.name: backend for backend in (*torch.BACKENDS, *colossalai.BACKENDS)}


@cache
def others() -> dict[str, Backend]:
    """The backends of other packages; a `UsageError` names one that cannot be loaded."""
    found: dict[str, Backend] = {}
    for entry in entry_points(group="llmforge.backends"):
        try:
            backend = entry.load()
        except Exception as error:
            raise UsageError(
                f"the backend {entry.name} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(backend, Backend) or backend.name in OWN:
            raise UsageError(
                f"the backend {entry.name} ({entry.value}) is not a Backend, or its name is already used; uninstall its package."
            )
        found[backend.name] = backend
    return found


def all_backends() -> dict[str, Backend]:
    return {**OWN, **others()}


def find(name: str) -> Backend:
    """The backend called `name`, which `auto` has been resolved to; raises `UsageError`."""
    backend = OWN.get(name) or others().get(name)
    if backend is None:
        raise UsageError(
            f"--plugin {name}: must be one of {', '.join(all_backends())}; train also accepts auto."
        )
    return backend


def resolved(name: str, processes: int) -> str:
    """`name`, and for `auto` what it comes to where memory does not decide: DDP on several processes."""
    if name != AUTO:
        return name
    return "native" if processes == 1 else "ddp"
