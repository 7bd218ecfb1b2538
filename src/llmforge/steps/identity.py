"""Which llmforge this is: what has to be the same on every host of a job. `python -m` prints it as JSON."""

import json
import platform
from importlib import metadata
from pathlib import Path

from llmforge import __version__
from llmforge.steps import fingerprint_json
from llmforge.steps.fingerprint import fingerprint_contents

PACKAGES = ("torch", "transformers", "colossalai")
NOT_INSTALLED = "not installed"


def identity() -> dict[str, str]:
    """Versions by name; `source` is the fingerprint of llmforge's own files."""
    package = Path(__file__).parent.parent
    files = {
        file.relative_to(package).as_posix(): fingerprint_contents(file) for file in package.rglob("*.py")
    }
    versions = {"llmforge": __version__, "source": fingerprint_json(files)}
    versions["python"] = ".".join(platform.python_version_tuple()[:2])
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name).split("+")[0]  # 2.9.0+cpu and 2.9.0+cu128 go together
        except metadata.PackageNotFoundError:
            versions[name] = NOT_INSTALLED
    return versions


if __name__ == "__main__":
    print(json.dumps(identity()))
