"""Where a model came from: the manifests of the steps behind it, as far as they can still be found."""

from dataclasses import dataclass
from pathlib import Path

from llmforge.errors import UserError
from llmforge.steps import Input, Manifest, manifest_path, read_manifest


@dataclass(frozen=True)
class Ancestor:
    """One finished step, or (without `manifest`) an input that llmforge did not make or that is gone."""

    path: Path
    fingerprint: str
    manifest: Manifest | None


def lineage(model: Path) -> list[Ancestor]:
    """The steps behind the model directory `model`, the last first, and what they began with.

    A model of a training names no inputs; the training around it (its folder, or that of its checkpoint) does.
    """
    starts = [model, *(folder for folder in model.resolve().parents[:2] if _step(folder) == "train")]
    found: dict[tuple[Path, str], Ancestor] = {}
    for start in starts:
        manifest = _manifest(start)
        if manifest is not None:
            _follow(Ancestor(start, str(manifest.outputs.get("fingerprint", start)), manifest), found)
    return list(found.values())


def _follow(ancestor: Ancestor, found: dict[tuple[Path, str], Ancestor]) -> None:
    key = (ancestor.path.resolve(), ancestor.fingerprint)
    if key in found:
        return
    found[key] = ancestor
    for one in ancestor.manifest.inputs if ancestor.manifest else []:
        _follow(_maker(one), found)


def _maker(one: Input) -> Ancestor:
    """The step that made the input `one`: an output, or a file of one, such as of a tokenizer. No manifest where it was
    made again since.
    """
    path = Path(one.path)
    manifest = _manifest(path)
    if manifest is not None and manifest.outputs.get("fingerprint") == one.fingerprint:
        return Ancestor(path, one.fingerprint, manifest)
    if path.is_file() and manifest is None:
        around = _manifest(path.parent)
        if around is not None and around.checksums.get(path.name) == one.fingerprint:
            return Ancestor(path.parent, str(around.outputs.get("fingerprint", "")), around)
    return Ancestor(path, one.fingerprint, None)


def _step(directory: Path) -> str | None:
    manifest = _manifest(directory)
    return manifest.step if manifest else None


def _manifest(path: Path) -> Manifest | None:
    if not path.exists() or not manifest_path(path).is_file():
        return None
    try:
        return read_manifest(path)
    except UserError:
        return None
