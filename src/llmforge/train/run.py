"""`llmforge train` from the outside: a finished run says so, a foreign one is refused, before torch is
imported.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from llmforge.console import say
from llmforge.errors import UserError
from llmforge.train.config import TrainConfig, dashed
from llmforge.workspace import (
    Finished,
    Input,
    Manifest,
    Step,
    find_finished,
    fingerprint,
    fingerprint_json,
    manifest_path,
    write_manifest,
)

RUN_FILE = "run.json"
MODELING = "modeling"
LATEST = "latest"


def run_training(config: TrainConfig) -> Finished:
    """Trains, or recognises the finished training; returns its manifest. Raises `UserError` before anything
    is loaded.
    """
    weights = weights_to_start_from(config)
    inputs = [Input(str(path), fingerprint(path)) for path in (weights, *config.dataset)]
    step = Step(
        "train", config.save_dir, config.deciding(), [weights, *config.dataset], overwrite=config.overwrite
    )
    plan = {
        "step": "train",
        "arguments": config.deciding(),
        "inputs": [entry.fingerprint for entry in inputs],
    }
    if (config.save_dir / RUN_FILE).is_file():
        if (finished := manifest_path(config.save_dir).is_file()) and (done := find_finished(step, inputs)):
            return done
        if config.overwrite:
            shutil.rmtree(config.save_dir)
        elif not finished:
            _check_unfinished(config, plan)
    elif done := find_finished(step, inputs):
        return done
    from llmforge.train.stage import Stage

    config.save_dir.mkdir(parents=True, exist_ok=True)
    _write_json(config.save_dir / RUN_FILE, plan)
    stage = Stage(config, weights)
    metrics = stage.run()
    if metrics is None:
        raise SystemExit(0)
    modeling = config.save_dir / MODELING
    outputs = json.loads((modeling / "llmforge.json").read_text())["outputs"]
    files = {f"{MODELING}/{name}": size for name, size in outputs["files"].items()}
    record = Manifest(
        "train", dict(step.arguments), inputs, {**outputs, "model": MODELING, "files": files}, metrics
    )
    return Finished(config.save_dir, write_manifest(manifest_path(config.save_dir), record), skipped=False)


def weights_to_start_from(config: TrainConfig) -> Path:
    """The model directory that training starts from: --pretrained, or the modeling folder of
    --load-checkpoint.
    """
    if config.load_checkpoint and is_modeling(Path(config.load_checkpoint)):
        return Path(config.load_checkpoint)
    return config.pretrained


def is_modeling(path: Path) -> bool:
    """Whether `path` holds weights alone: a model directory, not a checkpoint with running states."""
    return path.is_dir() and (path / "config.json").is_file() and not (path / "running_states.json").is_file()


def _check_unfinished(config: TrainConfig, plan: dict[str, Any]) -> None:
    old = json.loads((config.save_dir / RUN_FILE).read_text())
    differing = sorted(
        key
        for key in {*old["arguments"], *plan["arguments"]}
        if fingerprint_json(old["arguments"].get(key)) != fingerprint_json(plan["arguments"].get(key))
    )
    if config.load_checkpoint:
        for key in differing:
            say(
                f"note: --{dashed(key)} is now {plan['arguments'].get(key)}; "
                f"the run was started with {old['arguments'].get(key)}."
            )
        return
    raise UserError(
        f"{config.save_dir} holds an unfinished training; "
        "--load-checkpoint latest goes on with it, --overwrite starts anew."
    )


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
