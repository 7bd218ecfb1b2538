"""The directory of a training: what is known of it, whether it has ended or not. Nothing here imports torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llmforge.errors import UserError
from llmforge.overview.metrics import Metrics, read_metrics
from llmforge.sizes import refuse_large
from llmforge.steps import Manifest, manifest_path, read_manifest
from llmforge.train.save_dir import ABANDONED, BOARD, CHECKPOINT, METRICS, is_training, recorded_arguments
from llmforge.weights.lineage import TRAININGS, Artifact, lineage
from llmforge.yaml_file import read_yaml


@dataclass(frozen=True)
class Abandoned:
    """What a resume moved aside: what it continued from, when, and the steps that had to be taken again."""

    resumed: str
    at: str
    metrics: Metrics


@dataclass(frozen=True)
class Training:
    """`manifest` is None where it is not finished, or cannot be read. `config` are all options of its last start, by the
    names of their fields; `arguments` those that decide the result. `planned` steps are None where nothing says. `counters` are
    of the manifest or of the newest checkpoint, empty where there is none. `starts` are times.
    """

    path: Path
    manifest: Manifest | None
    arguments: Mapping[str, Any]
    config: Mapping[str, Any]
    metrics: Metrics
    checkpoints: list[str]
    planned: int | None
    counters: Mapping[str, Any]
    starts: list[datetime]
    abandoned: list[Abandoned]
    problems: list[str]

    def artifacts(self) -> list[Artifact]:
        """The steps behind it, as far as they can be found, and what they began with."""
        if self.manifest:
            return lineage(self.path)
        given = [self.config.get("model"), *_list(self.config.get("data"))]
        found: dict[tuple[Path, str], Artifact] = {}
        for word in given:
            if isinstance(word, str):
                root = _root(Path(word))
                for one in lineage(root) or [Artifact(root, "", None)]:
                    found.setdefault((one.path, one.fingerprint), one)
        return list(found.values())

    @property
    def preferences(self) -> bool:
        """Whether `train-preferences` wrote it."""
        return self.manifest is not None and self.manifest.step != "train"

    @property
    def start(self) -> str | None:
        """The model it started from, None where it is not known."""
        if given := self.value("model"):
            return str(given)
        inputs = self.manifest.inputs if self.manifest else []
        return inputs[0].name or inputs[0].path if inputs else None

    def value(self, name: str) -> Any:
        """An option of the training, None where it is not known."""
        return self.config.get(name, self.arguments.get(name))


def holds_training(path: Path) -> bool:
    """Whether `path` is the directory of a training, or has at least its metrics."""
    return is_training(path) or (path.is_dir() and (path / METRICS).is_file())


def read_training(path: Path) -> Training:
    """What can be read of the training in the directory `path`; the rest is among its `problems`."""
    problems: list[str] = []
    manifest = None
    if manifest_path(path).is_file():
        try:
            manifest = read_manifest(path)
        except UserError as error:
            problems.append(str(error))
    if manifest and manifest.step not in TRAININGS:
        problems.append(f"{path} was written by llmforge {manifest.step}, not by a training.")
        manifest = None
    arguments = manifest.arguments if manifest else recorded_arguments(path)
    if arguments is None:
        problems.append(f"{path / 'run.json'} is missing or damaged.")
    config: Mapping[str, Any] = {}
    if (path / "config.yaml").is_file():
        try:
            config = read_yaml(path / "config.yaml")
        except UserError as error:
            problems.append(str(error))
    metrics = read_metrics(path / METRICS)
    if metrics.damaged:
        problems.append(f"{path / METRICS}: {metrics.damaged:,} lines cannot be read and are left out.")
    if metrics.left_out:
        problems.append(
            f"{path / METRICS} has more figures than are shown; {metrics.left_out:,} values are left out."
        )
    names = [one.name for one in path.iterdir() if CHECKPOINT.fullmatch(one.name) and one.is_dir()]
    checkpoints = sorted(names, key=_step_of)
    newest = path / checkpoints[-1] if checkpoints else None
    return Training(
        path=path,
        manifest=manifest,
        arguments=arguments or {},
        config=config,
        metrics=metrics,
        checkpoints=checkpoints,
        planned=_planned(manifest, newest, {**(arguments or {}), **config}),
        counters=manifest.metrics
        if manifest
        else _table(_json(newest, "running_states.json").get("counters")),
        starts=_starts(path),
        abandoned=[
            _abandoned(one) for one in sorted(path.glob("abandoned-*")) if ABANDONED.fullmatch(one.name)
        ],
        problems=problems,
    )


def _planned(manifest: Manifest | None, newest: Path | None, options: Mapping[str, Any]) -> int | None:
    recorded = _json(newest, "lr_scheduler/schedule.json").get("total")
    for value in ((manifest.metrics if manifest else {}).get("steps"), recorded, options.get("max_steps")):
        if isinstance(value, int):
            return value
    return None


def _starts(path: Path) -> list[datetime]:
    """When it was started: TensorBoard opens a file each time, whose name has the second."""
    found = []
    for file in (path / "tensorboard").glob(f"{BOARD}*"):
        second = file.name.removeprefix(BOARD).partition(".")[0]
        if second.isdecimal() and len(second) <= 11:
            found.append(datetime.fromtimestamp(int(second), timezone.utc))
    return sorted(found)


def _abandoned(path: Path) -> Abandoned:
    record = _json(path, "abandoned.json") or _json(path, "moving.json")
    resumed = record.get("resumed") if isinstance(record.get("resumed"), str) else ""
    at = record.get("at") if isinstance(record.get("at"), str) else ""
    return Abandoned(str(resumed), str(at), read_metrics(path / METRICS, _step_of(str(resumed))))


def _step_of(name: str) -> int:
    match = CHECKPOINT.search(name)
    return int(match[2]) if match else 0


def _root(path: Path) -> Path:
    """The output to which a dataset or one of its parts belongs."""
    return next((one for one in (path, *path.parents[:2]) if manifest_path(one).is_file()), path)


def _json(directory: Path | None, name: str) -> Mapping[str, Any]:
    if directory is None or not (directory / name).is_file():
        return {}
    try:
        return _table(json.loads(refuse_large(directory / name).read_bytes()))
    except (OSError, ValueError, RecursionError, UserError):
        return {}


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
