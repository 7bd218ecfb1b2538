"""`llmforge.json`: the last file a step writes, and so the mark that its output is whole."""

import json
import os
import re
import stat
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llmforge import __version__
from llmforge.errors import UserError, missing
from llmforge.steps.checksums import checksum_of
from llmforge.steps.shapes import misfit

MANIFEST = "llmforge.json"
UNFINISHED = f".{MANIFEST}.tmp"  # where `write_durably` has it until it is whole
# Of steps with another name: the parts of a training, and the commands of a group.
COMMANDS = {
    **dict.fromkeys(("train-model", "train-adapter", "train-checkpoint"), "train"),
    "delta-make": "delta make",
    "delta-apply": "delta apply",
}
LARGEST = 256 << 20  # bytes; ten thousand parts of a dataset take 3 MB
# The last lines of the file: the checksum of all that is before them.
SEAL = re.compile(rb',\n  "checksum": "(xxh3:[0-9a-f]{32})"\n}\n\Z')
CHECKSUM = re.compile(r"xxh3:[0-9a-f]{32}")


@dataclass(frozen=True)
class Input:
    """What a step read: where it lay, and the fingerprint of what it held. `name` is `org/name@commit` where it came
    from the Hugging Face Hub.
    """

    path: str
    fingerprint: str
    name: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The record of one finished step.

    `arguments` are those that decide the bytes of the output. `outputs` has `fingerprint`, `files` (relative name to
    size in bytes) and `checksums` (of the same names; earlier versions recorded none) besides what the step adds; `metrics`
    are the figures of the step.
    """

    step: str
    arguments: dict[str, Any]
    inputs: list[Input] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    llmforge: str = __version__

    @property
    def files(self) -> dict[str, int]:
        """Sizes by relative name of the files of the output; empty where none were recorded."""
        return self.outputs.get("files", {})  # type: ignore[no-any-return]

    @property
    def checksums(self) -> dict[str, str]:
        """Checksums by relative name; empty where none were recorded."""
        return self.outputs.get("checksums", {})  # type: ignore[no-any-return]


class _DamagedError(Exception):
    """Why a file is no manifest."""


def command_of(step: str) -> str:
    """The command of a step as it is typed, for messages."""
    return f"llmforge {COMMANDS.get(step, step)}"


def manifest_path(output: Path) -> Path:
    """Where the manifest of `output` lies: inside a directory, beside a file."""
    return output.with_name(f"{output.name}.{MANIFEST}") if output.is_file() else output / MANIFEST


def read_manifest(output: Path, step: str | None = None, needs: Collection[str] = ()) -> Manifest:
    """The manifest of a finished output; a `UserError` where there is none, where another step wrote it, and where a
    field that the step adds is of another shape (shapes.py), or is missing and among `needs`.
    """
    path = manifest_path(output)
    if not output.exists():
        raise missing(output)
    if not path.is_file():
        wanted = f"of {command_of(step)}" if step else "of a finished llmforge step"
        raise UserError(
            f"{output} is not an output {wanted} (it has no {path.name}): it is unfinished, or was not created by llmforge."
        )
    try:
        manifest = _parsed(_read(path))
    except _DamagedError as error:
        raise UserError(
            f"{path} is not a manifest that this version can read ({error}); run the command that wrote it again."
        ) from error
    if step is not None and manifest.step != step:
        raise UserError(
            f"{output} was written by {command_of(manifest.step)}; give an output of {command_of(step)} instead."
        )
    if wrong := misfit(manifest.step, manifest.outputs, manifest.metrics, needs):
        raise UserError(
            f"{path} is not a manifest that this version can read ({wrong} is missing or has the wrong type); run the "
            "command that wrote it again."
        )
    return manifest


def is_manifest(path: Path) -> bool:
    """Whether the file `path` is a manifest of llmforge."""
    try:
        return path.is_file() and bool(_parsed(_read(path)))
    except (OSError, _DamagedError):
        return False


def write_manifest(path: Path, manifest: Manifest) -> Manifest:
    """Writes `manifest` to the file `path`, durably and in one move, stamped with the time of writing."""
    stamped = Manifest(
        **{**manifest.__dict__, "created": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    )
    order = ("step", "llmforge", "created", "arguments", "inputs", "outputs", "metrics")
    values = asdict(stamped)
    for one in values["inputs"]:
        if one["name"] is None:
            del one["name"]
    ordered = {key: values[key] for key in order}
    try:
        body = json.dumps(ordered, ensure_ascii=False, indent=2).encode()
    except UnicodeEncodeError:  # names of files may be any bytes
        body = json.dumps(ordered, indent=2).encode()
    body = body.removesuffix(b"\n}")
    write_durably(path, body + f',\n  "checksum": "{checksum_of(body)}"\n}}\n'.encode())
    return stamped


def write_durably(path: Path, data: bytes) -> None:
    """Writes `data` to the file `path` in one move. Links are replaced, not followed; `UserError` where someone's own
    file has the name of the temporary one.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, 0o666)
    except FileExistsError:
        status = os.lstat(temporary)
        start = temporary.read_bytes()[:8] if stat.S_ISREG(status.st_mode) else None
        if start is None or start != data[: len(start)]:
            raise UserError(f"{temporary} exists and was not written by llmforge; move it away.") from None
        temporary.unlink()  # of a run that was killed while it wrote it
        descriptor = os.open(temporary, flags, 0o666)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)


def _read(path: Path) -> bytes:
    if path.stat().st_size > LARGEST:
        raise _DamagedError(f"{path.stat().st_size:,} bytes are too many for one")
    return path.read_bytes()


def _parsed(raw: bytes) -> Manifest:
    try:
        values = json.loads(raw.decode("utf-8"))
    except RecursionError:
        raise _DamagedError("it is nested too deep") from None
    except ValueError as error:
        raise _DamagedError(str(error)) from error
    if not isinstance(values, dict):
        raise _DamagedError("it is not a JSON object")
    sealed = values.pop("checksum", None) is not None
    _check_types(values)
    manifest = Manifest(**{**values, "inputs": [Input(**entry) for entry in values["inputs"]]})
    # Manifests of the version before have no checksums, neither of files nor of themselves.
    if sealed or "checksums" in manifest.outputs:
        seal = SEAL.search(raw, max(0, len(raw) - 128))
        if not seal or checksum_of(raw[: seal.start()]) != seal[1].decode():
            raise _DamagedError("it was changed after it had been written")
    return manifest


TYPES = {
    "step": str,
    "arguments": dict,
    "inputs": list,
    "outputs": dict,
    "metrics": dict,
    "created": str,
    "llmforge": str,
}


def _check_types(values: dict[str, Any]) -> None:
    """That everything that `Manifest` promises holds, in names of files too: they never lead out of the output."""
    for key in ("step", "arguments", "inputs"):
        if key not in values:
            raise _DamagedError(f'it lacks "{key}"')
    for key, value in values.items():
        if key not in TYPES:
            raise _DamagedError(f'it has an unknown key "{key[:40]}"')
        if not isinstance(value, TYPES[key]):
            raise _DamagedError(f'"{key}" is no {TYPES[key].__name__}')
    for entry in values["inputs"]:
        keys = set(entry) if isinstance(entry, dict) else set()
        if not {"path", "fingerprint"} <= keys <= {"path", "fingerprint", "name"} or not all(
            isinstance(value, str) for value in entry.values()
        ):
            raise _DamagedError('"inputs" contains an invalid entry')
    outputs = values.get("outputs", {})
    if not isinstance(outputs.get("fingerprint", ""), str):
        raise _DamagedError('"outputs.fingerprint" is not a string')
    files, checksums = outputs.get("files", {}), outputs.get("checksums", {})
    if not isinstance(files, dict) or not all(_is_inside(n) and _is_size(s) for n, s in files.items()):
        raise _DamagedError('"outputs.files" contains an invalid entry')
    if "checksums" in outputs and (
        not isinstance(checksums, dict)
        or checksums.keys() != files.keys()
        or not all(isinstance(made, str) and CHECKSUM.fullmatch(made) for made in checksums.values())
    ):
        raise _DamagedError('"outputs.checksums" does not fit "outputs.files"')


def _is_inside(name: str) -> bool:
    return "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
