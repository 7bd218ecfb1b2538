"""Where a model came from: the manifests of the steps behind it, as far as they can still be found."""

from dataclasses import dataclass
from pathlib import Path

from llmforge.errors import UserError
from llmforge.steps import Input, Manifest, manifest_path, read_manifest

TRAININGS = ("train", "train-preferences")
PARTS = ("train-model", "train-adapter", "train-checkpoint")  # steps that write into a training's directory


@dataclass(frozen=True)
class Artifact:
    """The output of a finished step, or (without `manifest`) an input that llmforge did not make or that is gone."""

    path: Path
    fingerprint: str
    manifest: Manifest | None


def lineage(model: Path) -> list[Artifact]:
    """The steps behind the model directory `model`, the last first, and what they began with.

    A model of a training names no inputs; the training around it (its folder, or that of its checkpoint) does.
    """
    manifest = _manifest(model)
    starts = [] if manifest is None else [_made(model, manifest)]
    found: dict[tuple[Path, str], Artifact] = {}
    for start in [*starts, *_trainings(model)]:
        _follow(start, found)
    return list(found.values())


def _follow(artifact: Artifact, found: dict[tuple[Path, str], Artifact]) -> None:
    key = (artifact.path.resolve(), artifact.fingerprint)
    if key in found:
        return
    found[key] = artifact
    manifest = artifact.manifest
    if manifest is not None:
        around = _trainings(artifact.path) if manifest.step in PARTS else []
        for one in [*around, *map(_maker, manifest.inputs)]:
            _follow(one, found)


def _trainings(path: Path) -> list[Artifact]:
    """The training that wrote what lies at `path`, in its folder or in a checkpoint's."""
    around = [(folder, _manifest(folder)) for folder in path.resolve().parents[:2]]
    return [_made(folder, one) for folder, one in around if one is not None and one.step in TRAININGS]


def _made(path: Path, manifest: Manifest) -> Artifact:
    return Artifact(path, str(manifest.outputs.get("fingerprint", path)), manifest)


def _maker(one: Input) -> Artifact:
    """The step that made the input `one`: an output, or a file of one, such as of a tokenizer. No manifest where it was
    made again since.
    """
    path = Path(one.path)
    manifest = _manifest(path)
    if manifest is not None and manifest.outputs.get("fingerprint") == one.fingerprint:
        return Artifact(path, one.fingerprint, manifest)
    if path.is_file() and manifest is None:
        around = _manifest(path.parent)
        if around is not None and around.checksums.get(path.name) == one.fingerprint:
            return Artifact(path.parent, str(around.outputs.get("fingerprint", "")), around)
    return Artifact(path, one.fingerprint, None)


def _manifest(path: Path) -> Manifest | None:
    if not path.exists() or not manifest_path(path).is_file():
        return None
    try:
        return read_manifest(path)
    except UserError:
        return None
