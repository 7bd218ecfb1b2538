"""`llmforge.json`: the last file a step writes, and so the mark that its output is whole."""

import json
import os
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llmforge import __version__
from llmforge.errors import UserError

MANIFEST = "llmforge.json"


@dataclass(frozen=True)
class Input:
    """What a step read: where it lay, and the fingerprint of what it held."""

    path: str
    fingerprint: str


@dataclass(frozen=True)
class Manifest:
    """The record of one finished step.

    `arguments` are those that decide the bytes of the output. `outputs` has `fingerprint` and `files` (relative
    name to size in bytes) besides what the step adds; `metrics` are the figures of the step.
    """

    step: str
    arguments: dict[str, Any]
    inputs: list[Input] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    llmforge: str = __version__


def manifest_path(output: Path) -> Path:
    """Where the manifest of `output` lies: inside a directory, beside a file."""
    return output.with_name(f"{output.name}.{MANIFEST}") if output.is_file() else output / MANIFEST


def read_manifest(output: Path, step: str | None = None) -> Manifest:
    """The manifest of a finished output; a `UserError` where there is none, or where another step wrote it."""
    path = manifest_path(output)
    if not output.exists():
        raise UserError(f"{output} does not exist; check the path.")
    if not path.is_file():
        wanted = f"of llmforge {step}" if step else "of a finished llmforge step"
        raise UserError(
            f"{output} is not an output {wanted} (it has no {path.name}): it is unfinished or foreign."
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw["inputs"] = [Input(**entry) for entry in raw["inputs"]]
        manifest = Manifest(**raw)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is not a manifest that this llmforge can read ({error}); make the step again."
        ) from error
    if step is not None and manifest.step != step:
        raise UserError(
            f"{output} was written by llmforge {manifest.step}, but an output of llmforge {step} is needed here."
        )
    return manifest


def write_manifest(path: Path, manifest: Manifest) -> Manifest:
    """Writes `manifest` to the file `path`, durably and in one move, stamped with the time of writing."""
    stamped = Manifest(
        **{**manifest.__dict__, "created": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    )
    order = ("step", "llmforge", "created", "arguments", "inputs", "outputs", "metrics")
    values = asdict(stamped)
    text = json.dumps({key: values[key] for key in order}, ensure_ascii=False, indent=2) + "\n"
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return stamped


def recorded_fingerprint(output: Path) -> str | None:
    """The fingerprint in the manifest of `output`, while the names and sizes of its files are as recorded there."""
    manifest = read_manifest(output)
    if "files" not in manifest.outputs or "fingerprint" not in manifest.outputs:
        return None
    if changed := changed_file(output, manifest):
        raise UserError(
            f"{changed} was changed after llmforge {manifest.step} had finished {output}; make that step again."
        )
    return str(manifest.outputs["fingerprint"])


def changed_file(output: Path, manifest: Manifest) -> Path | None:
    """The first recorded file of `output` that is missing or has another size, if any."""
    for name, size in manifest.outputs.get("files", {}).items():
        file = output if output.is_file() else output / name
        if not file.is_file() or file.stat().st_size != size:
            return file
    return None
