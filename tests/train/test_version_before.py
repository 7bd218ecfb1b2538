"""What version 0.1 left: a model, a dataset, a checkpoint and a finished training of 12 steps.

`files/version-0.1.tar.gz` has `model`, `data`, and `run` with the checkpoint of step 4, the final model and the metrics.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from llmforge.train.options import TrainOptions
from llmforge.train.run import run_training


@pytest.fixture
def before(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).parent / "files" / "version-0.1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def train(before: Path, **more: Any) -> Any:
    values = {
        "model": before / "model",
        "data": [before / "data"],
        "output": before / "run",
        "mixed_precision": "fp32",
        "learning_rate": 1e-2,
        "num_epochs": 2,
        "save_interval": 4,
    }
    return run_training(TrainOptions(**{**values, **more}))


def losses(save_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (save_dir / "metrics.jsonl").read_text().splitlines()]


def test_its_finished_training_is_recognized(before: Path) -> None:
    assert train(before).skipped


def test_its_model_and_dataset_train_as_they_did(before: Path) -> None:
    train(before, output=before / "again", max_steps=12)
    assert losses(before / "again") == pytest.approx(losses(before / "run"), abs=1e-4)


def test_its_checkpoint_is_resumed_to_the_same_end(before: Path) -> None:
    expected, final = losses(before / "run"), before / "final"
    (before / "run" / "modeling").rename(final)
    (before / "run" / "llmforge.json").unlink()
    train(before, load_checkpoint="latest")
    assert losses(before / "run")[4:] == pytest.approx(expected[4:], abs=1e-4)
    assert losses(before / "run")[:4] == expected[:4]
    ours, theirs = (load_file(path / "model.safetensors") for path in (before / "run" / "modeling", final))
    assert ours.keys() == theirs.keys()
    assert max(abs(ours[name] - theirs[name]).max() for name in ours) < 1e-3
