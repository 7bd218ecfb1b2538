"""Names on the Hugging Face Hub, `org/name` or `org/name@revision`, where a path of a model or tokenizer is asked for.

`local(path)` is the directory to read: the path where there is one, else the snapshot in the cache of the Hub, fetched if
need be. A revision is a branch, a tag or a commit; the commit that it meant goes into the manifests (`name_of`).
"""

import glob
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from llmforge.console import say
from llmforge.errors import UserError
from llmforge.sizes import refuse_large

Kind = Literal["model", "tokenizer"]

PART = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?"
NAME = re.compile(rf"({PART}/{PART})(?:@([\w./-]+))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
SNAPSHOT = re.compile(r"/(?:models|datasets)--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})(?:/|$)")
SECONDS = 5.0  # for the Hub to answer a question; downloads have their own limits

# Files of a repository besides its weights, by their ending or beginning; what lies in folders (onnx, original) is not
# read by anyone here.
ENDINGS = (".json", ".model", ".txt", ".jinja", ".tiktoken", ".py")
BEGINNINGS = ("LICENSE", "NOTICE", "USE_POLICY")
# The weights that transformers would read, the first that are there: one format, and no copies in others.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "delta.safetensors",
    "delta.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")


@dataclass(frozen=True)
class Name:
    """A repository on the Hub and one of its revisions."""

    repository: str
    revision: str = "main"

    def __str__(self) -> str:
        return self.repository if self.revision == "main" else f"{self.repository}@{self.revision}"


def parse(path: str | Path) -> Name | None:
    """The name on the Hub that `path` is; None where it is a path: it exists, has another form, or begins with a
    directory that exists (then it is mistyped).
    """
    found = NAME.fullmatch(str(path))
    if not found or os.path.lexists(path) or ".." in str(path) or "--" in found[1]:
        return None
    if os.path.lexists(found[1].partition("/")[0]):
        return None
    return Name(found[1], found[2] or "main")


def local(path: Path, kind: Kind = "model") -> Path:
    """The directory in which the model or tokenizer `path` lies: `path`, or for a name on the Hub its snapshot.

    `UserError` where a name is neither in the cache nor to be had.
    """
    name = parse(path)
    return path if name is None else _snapshot(name, kind)


def name_of(path: Path) -> str | None:
    """`org/name@commit` of a snapshot in the cache of the Hub, or of a file in one; None for any other path."""
    found = SNAPSHOT.search(path.as_posix())
    return f"{found[1]}/{found[2]}@{found[3]}" if found else None


def title(path: Path) -> str:
    """What a model or tokenizer directory is called: its own name, or `org/name@` and the first digits of the commit."""
    name = name_of(path)
    return name[: name.index("@") + 8] if name else path.name


@cache
def _snapshot(name: Name, kind: Kind) -> Path:
    from huggingface_hub import constants

    held = _cached(name, Path(constants.HF_HUB_CACHE))
    whole = held is not None and is_whole(held, kind)
    if held is not None and whole and COMMIT.fullmatch(name.revision):
        return held  # a commit never changes
    if constants.HF_HUB_OFFLINE:
        problem = "HF_HUB_OFFLINE is set"
    else:
        answer = _ask(name)
        if not isinstance(answer, str):
            return _fetch(name, kind, answer)
        problem = answer
    if held is None or not whole:
        held_partly = "only partly" if held is not None else "not"
        raise UserError(
            f"{name} is not a local path and is {held_partly} in the cache of the Hugging Face Hub "
            f"({constants.HF_HUB_CACHE}); {problem}: give a local path, or try again where the Hub can be reached."
        )
    say(f"{name}: commit {held.name[:12]} from the cache, because {problem}.")
    return held


def _cached(name: Name, root: Path) -> Path | None:
    folder = root / f"models--{name.repository.replace('/', '--')}"
    commit = name.revision
    if not COMMIT.fullmatch(commit):
        try:
            commit = (folder / "refs" / name.revision).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
    snapshot = folder / "snapshots" / commit
    return snapshot if COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def _ask(name: Name) -> list[str] | str:
    """The names of the files of the revision, the Hub being asked once; or why it does not answer.

    `UserError` where it answers that there is no such thing.
    """
    from huggingface_hub import HfApi, constants, errors

    api = HfApi()
    try:
        info: Any = api.repo_info(name.repository, repo_type="model", revision=name.revision, timeout=SECONDS)
    except errors.GatedRepoError as error:
        raise UserError(
            f"{name} is a gated repository: request access on {api.endpoint}/{name.repository}, "
            "then log in (hf auth login)."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name.repository} has no revision {name.revision} on {api.endpoint}.") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{name} is neither a local path nor a model on {api.endpoint}; check the name, and log in if it "
            "is private (hf auth login)."
        ) from error
    except errors.HFValidationError as error:
        raise UserError(
            f"{name} is neither a local path nor a name on the Hugging Face Hub; check it."
        ) from error
    except Exception as error:  # of whatever library huggingface_hub speaks HTTP with
        why = " ".join(str(error).split())[:120].rstrip(".") or type(error).__name__
        return f"{constants.ENDPOINT} cannot be reached ({why})"
    return [str(one.rfilename) for one in info.siblings or []]


def _fetch(name: Name, kind: Kind, files: Sequence[str]) -> Path:
    """The snapshot with those of `files` that are needed; what is in the cache is not fetched again."""
    from huggingface_hub import snapshot_download

    def download(wanted: Sequence[str]) -> Path:
        try:
            patterns = [glob.escape(one) for one in wanted]
            # By the name of the revision, under which the cache then finds it again.
            return Path(snapshot_download(name.repository, revision=name.revision, allow_patterns=patterns))
        except OSError as error:
            if error.errno is not None and not isinstance(error, ConnectionError):
                raise  # of this machine: a full disk, a cache that cannot be written
            raise _failed(name, error) from error
        except Exception as error:
            raise _failed(name, error) from error

    small = [one for one in files if is_small(one)]
    if kind == "tokenizer":
        return download(small)
    weights = next((one for one in WEIGHTS if one in files), None)
    if weights is None:
        raise UserError(
            f"{name} has no weights in a supported format ({', '.join(w for w in WEIGHTS if 'index' not in w)})."
        )
    snapshot = download([*small, weights])
    if weights.endswith(".index.json"):
        shards = shards_of(snapshot / weights)
        if missing := sorted(shards - set(files)):
            raise UserError(f"{name}: {weights} names {missing[0]}, which is not in the repository.")
        snapshot = download([*small, weights, *sorted(shards)])
    return snapshot


def _failed(name: Name, error: Exception) -> UserError:
    return UserError(
        f"{name} could not be downloaded ({' '.join(str(error).split())[:200].rstrip('.')}); try again."
    )


def is_small(file: str) -> bool:
    """Whether a file of a repository goes along whatever is wanted of it."""
    return (
        "/" not in file
        and not file.endswith(".index.json")
        and (file.endswith(ENDINGS) or file.startswith(BEGINNINGS))
    )


def is_whole(snapshot: Path, kind: Kind) -> bool:
    """Whether a snapshot in the cache has what a model or tokenizer needs; others may have fetched a part of it."""
    names = {path.name for path in snapshot.iterdir() if path.is_file()}
    if not names & set(TOKENIZERS) and not any(name.endswith((".tiktoken", ".model")) for name in names):
        return False
    if kind == "tokenizer":
        return True
    weights = next((one for one in WEIGHTS if one in names), None)
    if weights is None or ("config.json" not in names and not weights.startswith("delta")):
        return False
    return not weights.endswith(".index.json") or shards_of(snapshot / weights) <= names


def shards_of(index: Path) -> set[str]:
    """The names of the weight files that an index names."""
    try:
        shards = set(json.loads(refuse_large(index).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is not an index of weights ({error}); download it again.") from error
    if not all(isinstance(one, str) and "/" not in one for one in shards):
        raise UserError(f"{index} names weights outside its directory; download it again.")
    return shards
