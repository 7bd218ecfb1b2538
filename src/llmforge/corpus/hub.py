"""Data sets by their name on the Hugging Face Hub: `ORG/NAME[@REVISION][:[CONFIG:]SPLIT[[:N]]]`.

The rows are streamed by `datasets`, once, into one file that stays; its directory is called as the Hub's own cache
calls a snapshot, so manifests name the dataset and its commit.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from llmforge.console import progress, say
from llmforge.errors import InterruptionError, UserError

NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+?))?"
    r"(:((?P<config>[\w.-]+):)?(?P<split>[A-Za-z]\w*)(\[:(?P<most>\d+)\])?)?"
)
COMMIT = re.compile("[0-9a-f]{40}")
UNAUTHORIZED = 401  # what the Hub says to who may not know that there is such a dataset, or is none
SECONDS = 5.0  # for the Hub to answer a question
# Of `datasets`, each after five of `huggingface_hub`, half a minute in all; its own default makes that ten minutes.
RETRIES = 1


def local_path(text: str) -> Path:
    """`text` as a path, where it is one or could be none but that; else the file with the dataset of that name.

    Raises `UserError` where the Hub has no such dataset, or cannot be reached and the rows are not here yet.
    """
    path = Path(text).expanduser()
    match = NAME.fullmatch(text)
    if os.path.lexists(path) or match is None or Path(text).suffix.lower() in _suffixes():
        return path
    return _fetched(text, **match.groupdict())


def own_name(text: str) -> str:
    """What documents of the dataset are called: its name without the rest."""
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
    snapshots = _cache() / f"datasets--{name.replace('/', '--')}" / "snapshots"
    file = f"{config or 'default'}-{split}{f'-{most}' if most else ''}.jsonl"
    commit = (
        revision
        if revision and COMMIT.fullmatch(revision)
        else _commit(text, name, revision, snapshots, file)
    )
    target = snapshots / commit / file
    if target.is_file():
        return target
    if why := _offline():
        raise _absent(text, why)
    rows = _rows(text, name, commit, config, split)
    say(f"downloading {text} to {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with (
            partial.open("w", encoding="utf-8") as out,
            progress(f"downloading {name}", None, "rows") as advance,
        ):
            for row in islice(rows, int(most) if most else None):
                out.write(json.dumps(row, ensure_ascii=True, default=str) + "\n")
                advance(1)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "llmforge" / "datasets"


def _commit(text: str, name: str, revision: str | None, snapshots: Path, file: str) -> str:
    """The commit of a branch or tag; without an answer of the Hub the one whose `file` was fetched before, if it is one
    alone and no revision was asked for.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The errors of the library with which it speaks HTTP, which depends on its version.
    no_answer = (*HfHubHTTPError.__bases__, OSError, ValueError)
    why = _offline()
    try:
        if not why:
            return str(HfApi().dataset_info(name, revision=revision, timeout=SECONDS).sha)
    except (RepositoryNotFoundError, HFValidationError):
        raise _unknown(text) from None
    except RevisionNotFoundError:
        raise UserError(
            f"{text}: this dataset has no branch, tag or commit {revision}; its page on the Hub lists them."
        ) from None
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code == UNAUTHORIZED:
            raise _unknown(text) from None
        raise UserError(f"{text}: the Hub refused access ({_line(error)}).") from None
    except no_answer as error:
        why = f"the Hub cannot be reached ({_line(error)})"
    known = [path.parent.name for path in snapshots.glob(f"*/{file}")]
    if len(known) == 1 and not revision:
        say(f"{text}: commit {known[0][:12]}, from the cache, because {why}.")
        return known[0]
    raise _absent(text, why)


def _offline() -> str:
    """The variable that forbids to ask the Hub, as a clause; "" where none does."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    datasets_offline = os.environ.get("HF_DATASETS_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES
    return "HF_DATASETS_OFFLINE is set" if datasets_offline else ""


def _unknown(text: str) -> UserError:
    return UserError(
        f"{text} is neither a path nor a dataset on the Hub that you can read; check the name, or "
        "set HF_TOKEN if it is private."
    )


def _absent(text: str, why: str) -> UserError:
    return UserError(
        f"{text} is not a path, and is not in the cache {_cache()} as a dataset; {why}: check the path, or "
        "download it where the Hub can be reached."
    )


def _rows(text: str, name: str, commit: str, config: str | None, split: str) -> Iterator[Any]:
    """The rows, as they come; errors of the connection are `InterruptionError`s."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    if "torch" not in sys.modules:
        # Else it imports torch, which takes 3 seconds, to share a number between processes.
        datasets.config.TORCH_AVAILABLE = False
    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = RETRIES
    failures = (*HfHubHTTPError.__bases__, OSError, RuntimeError, datasets.exceptions.DatasetsError)
    try:
        found = datasets.load_dataset(name, config, split=split, revision=commit, streaming=True)
    except ValueError as error:
        raise UserError(f"{text}: {_line(error)}; name it as ORG/NAME:CONFIG:SPLIT.") from None
    except failures as error:
        raise InterruptionError(f"{text} cannot be downloaded ({_line(error)}).") from None

    def rows() -> Iterator[Any]:
        try:
            yield from found
        except failures as error:
            raise InterruptionError(
                f"{text} could not be downloaded completely ({_line(error)}); run the same command again."
            ) from None

    return rows()


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
