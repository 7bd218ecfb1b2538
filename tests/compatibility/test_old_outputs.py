"""A dataset and a model of commit 85df842: they open, are known as finished, and train to the same losses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from llmforge.dataset.options import PrepareOptions
from llmforge.dataset.packed import PackedDataset
from llmforge.dataset.prepare import prepare_data
from llmforge.errors import UserError
from llmforge.train.sampler import Sampler

FILES = Path(__file__).with_name("files")
FINGERPRINT = "xxh3:ee74b1934bb97afa0d77a246abe965b9"
# `PackedDataset.order(42, epoch)` of that commit.
# fmt: off
ORDERS = [
    [5, 21, 7, 17, 19, 10, 13, 14, 1, 16, 20, 12, 22, 25, 0, 24, 11, 6, 23, 15, 9, 3, 8, 2, 18, 4, 26, 48, 52, 27, 30,
     33, 40, 46, 43, 39, 29, 35, 45, 37, 34, 28, 47, 41, 50, 36, 42, 49, 44, 32, 38, 51, 31, 79, 56, 72, 73, 74, 61, 63,
     62, 65, 54, 64, 71, 58, 68, 77, 53, 55, 59, 66, 57, 69, 60, 78, 70, 75, 67, 76],
    [1, 20, 13, 18, 16, 7, 12, 17, 19, 2, 5, 4, 10, 15, 21, 8, 3, 26, 6, 22, 25, 14, 11, 0, 9, 24, 23, 40, 50, 41, 46,
     31, 27, 33, 43, 37, 42, 45, 39, 36, 34, 51, 30, 32, 52, 38, 28, 44, 35, 47, 49, 48, 29, 58, 77, 75, 69, 61, 56, 67,
     73, 70, 71, 74, 78, 60, 68, 79, 57, 66, 64, 54, 62, 72, 53, 55, 65, 59, 76, 63],
]
# Of `llmforge train --max-steps 9 --num-epochs 2 --lr 1e-2 --micro-batch-size 4 --mixed-precision fp32`.
LOSSES = [5.766095153747067, 5.711662940979004, 5.56967324715156, 5.470964789390564, 5.429605683470084,
          5.343335319497732, 5.301698512000007, 5.262773729914384, 5.245460516697651]
# fmt: on


@pytest.fixture
def old(tmp_path: Path) -> Path:
    shutil.copytree(FILES, tmp_path / "old")
    return tmp_path / "old"


def test_the_dataset_is_read_in_the_same_order(old: Path) -> None:
    data = PackedDataset([old / "data"])
    assert (len(data), data.fingerprint, data.tokens) == (80, FINGERPRINT, 3642)
    sampler = Sampler(data, 42)
    read = [np.concatenate([sampler.next(7) for _ in range(-(-80 // 7))]).tolist() for _ in range(2)]
    assert read == ORDERS
    assert sum(len(row.input_ids) for row in data.rows(range(80))) == 3642
    with pytest.raises(UserError, match=r"--mix needs rows of one category.*run prepare-data again"):
        Sampler(data, 42, {"en": 1.0, "zh": 1.0})


def test_the_same_command_knows_it_as_finished(old: Path) -> None:
    options = PrepareOptions(
        [old / "corpus/en", old / "corpus/zh"],
        old / "model",
        old / "data",
        max_length=48,
        bins=3,
        holdout=0.05,
    )
    assert prepare_data(options).skipped


def test_the_model_trains_to_the_same_losses(old: Path) -> None:
    from llmforge.train.options import TrainOptions
    from llmforge.train.run import run_training

    config = {"model": old / "model", "data": [old / "data"], "output": old / "run"}
    steps = {"max_steps": 9, "num_epochs": 2, "learning_rate": 1e-2, "micro_batch_size": 4}
    run_training(TrainOptions(**config, **steps, mixed_precision="fp32", plugin="native"))
    lines = [json.loads(line) for line in (old / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == pytest.approx(LOSSES, rel=1e-6)
