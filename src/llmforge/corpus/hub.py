"""Data sets by their name on the Hugging Face Hub: `ORG/NAME[@REVISION][:[CONFIG:]SPLIT[[:N]]]`.

The rows are streamed by `datasets`, once, into one file that stays; its directory is called as the Hub's own cache
calls a snapshot, so manifests name the data set and its commit.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from llmforge.console import progress, say
from llmforge.errors import InterruptionError, UserError

NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+?))?"
    r"(:((?P<config>[\w.-]+):)?(?P<split>[A-Za-z]\w*)(\[:(?P<most>\d+)\])?)?"
)


def local_path(text: str) -> Path:
    """`text` as a path, where it is one or could be none but that; else the file with the data set of that name.

    Raises `UserError` where the Hub has no such data set, or cannot be reached and the rows are not here yet.
    """
    path = Path(text).expanduser()
    match = NAME.fullmatch(text)
    if os.path.lexists(path) or match is None or Path(text).suffix.lower() in _suffixes():
        return path
    return _fetched(text, **match.groupdict())


def own_name(text: str) -> str:
    """What documents of the data set are called: its name without the rest."""
    match = NAME.fullmatch(text)
    return match["name"].rpartition("/")[2] if match else text


def _suffixes() -> set[str]:
    from llmforge.corpus.formats import FORMATS
    from llmforge.corpus.streams import COMPRESSIONS

    return {*FORMATS, *COMPRESSIONS}


def _fetched(
    text: str, name: str, revision: str | None, config: str | None, split: str | None, most: str | None
) -> Path:
    split = split or "train"
    commit = _commit(text, name, revision)
    file = f"{config or 'default'}-{split}{f'-{most}' if most else ''}.jsonl"
    target = _cache() / f"datasets--{name.replace('/', '--')}" / "snapshots" / commit / file
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        rows = _rows(text, name, commit, config, split)
        say(f"fetching {text} to {target}")
        with (
            partial.open("w", encoding="utf-8") as out,
            progress(f"fetching {name}", None, "rows") as advance,
        ):
            for number, row in enumerate(rows):
                if most and number >= int(most):
                    break
                out.write(json.dumps(row, ensure_ascii=True, default=str) + "\n")
                advance(1)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "llmforge" / "datasets"


def _commit(text: str, name: str, revision: str | None) -> str:
    """The commit of a revision; without a connection, the one that was fetched before where there is one alone."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    known = sorted((_cache() / f"datasets--{name.replace('/', '--')}" / "snapshots").glob("*"))
    if revision and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    try:
        return str(huggingface_hub.HfApi().dataset_info(name, revision=revision).sha)
    except RepositoryNotFoundError:
        raise UserError(
            f"{text} does not exist, neither as a path nor as a data set on the Hub; check the name."
        ) from None
    except HfHubHTTPError as error:
        raise UserError(f"{text}: the Hub refuses it ({_line(error)}).") from None
    except (OfflineModeIsEnabled, OSError, Exception) as error:
        if len(known) == 1 and not revision:
            return known[0].name
        raise UserError(
            f"{text} does not exist as a path, and the Hub cannot be reached to look for a data set of this name "
            f"({type(error).__name__}); check the path, or fetch it where there is a connection."
        ) from None


def _rows(text: str, name: str, commit: str, config: str | None, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split, revision=commit, streaming=True)
    except ValueError as error:
        raise UserError(f"{text}: {_line(error)}; name it as ORG/NAME:CONFIG:SPLIT.") from None
    except (OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InterruptionError(f"{text} cannot be fetched ({_line(error)}).") from None


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
