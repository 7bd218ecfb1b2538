"""Results of the parts of all.sh: one JSON object a line, in the file that RESULTS names, on the disk at once."""

import json
import os
from pathlib import Path
from typing import Any


def write(part: str, name: str, **figures: Any) -> None:
    """Adds the result `name` of `part`; without RESULTS in the environment nothing."""
    if target := os.environ.get("RESULTS"):
        with open(target, "a", encoding="utf-8") as file:
            file.write(json.dumps({"part": part, "name": name, **figures}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read(file: Path) -> list[dict[str, Any]]:
    """The results so far; a line that a kill cut short is left out."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
