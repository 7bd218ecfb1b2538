"""Names on the Hugging Face Hub, `org/name` or `org/name@revision`, where a path of a model, tokenizer or dataset goes."""

import re
from pathlib import Path

SNAPSHOT = re.compile(r"(models|datasets)--(.+?)--(.+)/snapshots/([0-9a-f]{40})")


def name_of(path: Path) -> str | None:
    """`org/name@commit` of a snapshot in the cache of the Hub; None for any other path."""
    found = SNAPSHOT.search("/".join(path.parts[-3:]))
    return f"{found[2]}/{found[3]}@{found[4]}" if found else None
