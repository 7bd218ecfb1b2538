"""`train --mix`: shares of categories chosen when training, on a dataset that was encoded once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmforge.dataset.packed import PackedDataset
from llmforge.errors import UsageError, UserError
from llmforge.train.options import TrainOptions
from llmforge.train.plan import make_plan
from llmforge.train.sampler import Sampler
from llmforge.weights.directory import ModelDirectory

MIX = {"en": 1.0, "zh": 3.0}


@pytest.fixture(scope="module")
def prepared(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Far more rows of en than of zh."""
    from llmforge.dataset.options import PrepareOptions
    from llmforge.dataset.prepare import prepare_data

    path, chance = tmp_path_factory.mktemp("prepared"), np.random.default_rng(0)
    for name, count in {"en": 150, "zh": 40}.items():
        (path / name).mkdir()
        texts = ["".join(chance.choice(["ba", "ce", "di", " "], 30)) for _ in range(count)]
        (path / name / "x.jsonl").write_text("".join(json.dumps({"target": text}) + "\n" for text in texts))
    options = PrepareOptions(
        [path / "en", path / "zh"], tiny_model, path / "data", max_length=48, bins=2, workers=1
    )
    return prepare_data(options).output


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_steps_read_the_rows_of_the_sampler_and_a_resume_goes_on_with_them(
    train: Callable[..., Any], prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = PackedDataset([prepared])
    given = {"data": [prepared], "mix": "zh=3,en=1", "micro_batch_size": 2, "gradient_accumulation_steps": 2}
    train(**given, max_steps=10, save_interval=4)
    whole = lines(tmp_path / "run")
    said = capsys.readouterr().err
    zh, en = (len(data.by_category[name]) for name in ("zh", "en"))
    read = 3 * (zh + en) // 4
    assert f"of its {zh:,} rows ({3 * (zh + en) / 4 / zh:.2f} times)" in said
    assert abs(int(said.split("zh ")[1].split(" ")[0]) - read) <= 1
    sampler, seen = Sampler(data, 42, MIX), []
    for line in whole:
        rows = data.rows(sampler.next(4))
        seen += [row.seq_categories[0] for row in rows]
        assert sum(int(row.seq_bytes.sum()) for row in rows) == line["bytes"]
        assert (line["epoch"], line["sample"]) == (sampler.epoch, sampler.sample)
    assert seen.count("zh") == 30
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    (tmp_path / "again/llmforge.json").unlink()
    shutil.rmtree(tmp_path / "again/modeling")
    from_four = str(tmp_path / "again/epoch-0_step-4")
    train(**given, max_steps=10, output=tmp_path / "again", load_checkpoint=from_four)
    names = ("step", "loss", "bytes", "epoch", "sample", "gradient_norm")
    assert [[line[n] for n in names] for line in lines(tmp_path / "again")] == [
        [line[n] for n in names] for line in whole
    ]


def test_a_resume_with_another_mixture_goes_on_in_each_category(
    train: Callable[..., Any], prepared: Path, tmp_path: Path
) -> None:
    data = PackedDataset([prepared])
    given = {"data": [prepared], "micro_batch_size": 4}
    train(**given, mix="zh=3,en=1", max_steps=2)
    (tmp_path / "run/llmforge.json").unlink()
    train(**given, mix="zh=1,en=3", max_steps=4, load_checkpoint="latest")
    sampler = Sampler(data, 42, MIX)
    read = [sampler.next(4) for _ in range(2)]
    sampler.reweight({"zh": 1.0, "en": 3.0})
    read += [sampler.next(4) for _ in range(2)]
    wanted = [sum(int(row.seq_bytes.sum()) for row in data.rows(rows)) for rows in read]
    assert [line["bytes"] for line in lines(tmp_path / "run")] == wanted
    assert len(set(np.concatenate(read).tolist())) == 16


@pytest.mark.parametrize("stop", [4, 5, 7])
def test_proportions_change_after_the_steps_that_say_so_and_a_resume_keeps_to_them(
    stop: int, train: Callable[..., Any], prepared: Path, tmp_path: Path
) -> None:
    """A resume from before the change, from the step of the change, and from behind it."""
    data = PackedDataset([prepared])
    given: dict[str, Any] = {
        "data": [prepared],
        "micro_batch_size": 4,
        "mix": "zh=3,en=1",
        "mix_later": "5:zh=1,en=3,9:zh=1,en=1",
        "save_interval": stop,
        "max_steps": 12,
    }
    train(**given)
    sampler, read = Sampler(data, 42, MIX), []
    for step in range(12):
        sampler.reweight(MIX if step < 5 else {"zh": 1.0, "en": 3.0} if step < 9 else {"zh": 1.0, "en": 1.0})
        read.append(sampler.next(4))
    wanted = [sum(int(row.seq_bytes.sum()) for row in data.rows(rows)) for rows in read]
    assert [line["bytes"] for line in lines(tmp_path / "run")] == wanted
    names = [[row.seq_categories[0] for row in data.rows(rows)] for rows in read]
    assert [sum(step.count("zh") for step in names[a:b]) for a, b in ((0, 5), (5, 9), (9, 12))] == [15, 4, 6]
    (tmp_path / "again").mkdir()
    for name in ("run.json", "metrics.jsonl"):
        shutil.copy(tmp_path / "run" / name, tmp_path / "again" / name)
    first = next((tmp_path / "run").glob(f"epoch-*_step-{stop}"))
    shutil.copytree(first, tmp_path / "again" / first.name)
    train(**given, output=tmp_path / "again", load_checkpoint="latest")
    models = [(tmp_path / name / "modeling" / "model.safetensors").read_bytes() for name in ("run", "again")]
    assert models[0] == models[1]


@pytest.mark.parametrize(
    ("mix", "later", "sentence"),
    [
        (None, "5:zh=1,en=1", r"--mix-later needs --mix"),
        ("zh=1,en=1", "zh=1,en=1", r"--mix-later zh=1 has no step; write 500:zh=0.9"),
        ("zh=1,en=1", "5:zh=1,en=1,5:zh=2,en=1", r"--mix-later 5:zh=2: must be STEP:.* with rising steps"),
        ("zh=1,en=1", "x:zh=1,en=1", r"--mix-later x:zh=1: must be STEP:"),
        ("zh=1,en=1", "0:zh=1,en=1", r"--mix-later 0:zh=1: must be STEP:"),
        ("zh=1,en=1", "5:zh", r"--mix-later zh is not CATEGORY=WEIGHT"),
        ("zh=1,en=1", "5:zh=1,en=0", r"--mix-later 5: must read the categories of --mix \(en, zh\)"),
        ("zh=1,en=0", "5:zh=1", r"--mix-later 5: must read the categories of --mix \(zh\)"),
    ],
)
def test_changes_that_do_not_fit_are_refused(
    mix: str | None, later: str, sentence: str, tmp_path: Path
) -> None:
    values = {"model": tmp_path, "data": [tmp_path], "output": tmp_path / "run"}
    with pytest.raises(UsageError, match=sentence):
        TrainOptions(**values, mix=mix, mix_later=later)


def test_the_plan_counts_the_rows_of_the_mixture(prepared: Path, tiny_model: Path, tmp_path: Path) -> None:
    given = {"model": tiny_model, "data": [prepared], "output": tmp_path / "run"}
    data = PackedDataset([prepared])
    plan = make_plan(
        TrainOptions(**{**given, "mix": "zh=1,en=0", "micro_batch_size": 1}), ModelDirectory(tiny_model)
    )
    zh = data.by_category["zh"]
    assert (plan.steps, plan.tokens) == (len(zh), zh.tokens)


@pytest.mark.parametrize(
    ("mix", "error", "sentence"),
    [
        ("zh", UsageError, "--mix zh is not CATEGORY=WEIGHT"),
        ("zh=0,en=0", UsageError, "--mix gives every category the weight 0"),
        ("zh=1", UserError, "--mix has no weight for en; add en=0"),
        ("zh=1,en=1,de=1", UserError, "--mix names de, but the categories are en,"),
    ],
)
def test_a_mixture_that_does_not_fit_is_refused_before_the_model_is_loaded(
    train: Callable[..., Any], prepared: Path, tmp_path: Path, mix: str, error: type, sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        train(data=[prepared], mix=mix)
    assert not (tmp_path / "run").exists()


def test_rows_that_mix_categories_are_refused(train: Callable[..., Any], tiny_data: Path) -> None:
    with pytest.raises(UserError, match=r"--mix needs rows of one category.*run prepare-data again"):
        train(data=[tiny_data], mix="zh=1,en=1")
