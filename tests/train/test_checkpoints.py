"""Checkpoints that are damaged, abandoned or in somebody's way; sources and save directories that go away."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmforge.errors import UserError
from llmforge.train import branch
from llmforge.train.run import Stopped
from llmforge.train.saver import Saver

Train = Callable[..., Any]


@pytest.fixture(scope="session")
def whole(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training of 4 steps with a checkpoint of each."""
    from llmforge.train.options import TrainOptions
    from llmforge.train.run import run_training

    save_dir = tmp_path_factory.mktemp("checkpoints") / "run"
    values = {
        "model": tiny_model,
        "data": [tiny_data],
        "output": save_dir,
        "mixed_precision": "fp32",
    }
    run_training(TrainOptions(**{**values, "learning_rate": 1e-2, "max_steps": 4, "save_interval": 1}))
    return save_dir


@pytest.fixture
def unfinished(whole: Path, tmp_path: Path) -> Path:
    """The same training as if it had been killed after its last checkpoint."""
    save_dir = tmp_path / "run"
    shutil.copytree(whole, save_dir)
    (save_dir / "llmforge.json").unlink()
    shutil.rmtree(save_dir / "modeling")
    return save_dir


def names(save_dir: Path) -> list[str]:
    return sorted(path.name for path in save_dir.glob("epoch-*"))


def lines(save_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (save_dir / "metrics.jsonl").read_text().splitlines()]


def weights(save_dir: Path) -> bytes:
    return (save_dir / "modeling" / "model.safetensors").read_bytes()


def deep() -> str:
    return "[" * 100_000


def replaced(directory: Path) -> Path:
    shutil.rmtree(directory)
    return directory


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def test_going_back_twice_moves_what_is_newer_aside_and_latest_follows_the_new_branch(
    train: Train, unfinished: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = str(unfinished / "epoch-0_step-1")
    stopped = train(max_steps=4, load_checkpoint=first, time_limit="0", keep_last=1)
    assert isinstance(stopped, Stopped)
    assert stopped.step == 2
    assert "epoch-0_step-2, epoch-0_step-3, epoch-0_step-4" in capsys.readouterr().err
    assert names(unfinished) == [
        "epoch-0_step-2"
    ]  # --keep-last counts this branch, and keeps what it has written
    aside = unfinished / "abandoned-1"
    assert names(aside) == ["epoch-0_step-2", "epoch-0_step-3", "epoch-0_step-4"]
    assert lines(aside) == [1, 2, 3, 4]
    record = json.loads((aside / "abandoned.json").read_text())
    assert record["resumed"] == "epoch-0_step-1"
    assert record["moved"] == names(aside)
    shutil.copytree(whole / "epoch-0_step-1", unfinished / "epoch-0_step-1")
    assert isinstance(train(max_steps=4, load_checkpoint=first, time_limit="0"), Stopped)
    assert names(unfinished / "abandoned-2") == ["epoch-0_step-2"]
    finished = train(max_steps=4, load_checkpoint="latest")
    assert weights(unfinished) == weights(whole)
    assert lines(unfinished) == [1, 2, 3, 4]
    assert not any(name.startswith("abandoned") for name in finished.manifest.files)


def test_a_move_that_was_cut_short_is_ended_before_latest_is_looked_for(unfinished: Path) -> None:
    branch.set_aside(unfinished, unfinished / "epoch-0_step-2")
    aside = unfinished / "abandoned-1"
    (aside / "abandoned.json").rename(aside / "moving.json")
    (aside / "epoch-0_step-4").rename(unfinished / "epoch-0_step-4")
    branch.finish_setting_aside(unfinished)
    assert names(unfinished) == ["epoch-0_step-1", "epoch-0_step-2"]
    assert not (aside / "moving.json").exists()


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "manifest without files": lambda c: (c / "llmforge.json").write_text(
        '{"step": "train-checkpoint", "arguments": {}, "inputs": [], "outputs": {}, "metrics": {}}'
    ),
    "manifest nested too deep": lambda c: (c / "llmforge.json").write_text(deep()),
    "manifest is a list": lambda c: (c / "llmforge.json").write_text("[]"),
    "empty manifest": lambda c: (c / "llmforge.json").write_text(""),
    "states of zeros": lambda c: (c / "running_states.json").write_bytes(
        bytes((c / "running_states.json").stat().st_size)
    ),
    "one bit of the weights": lambda c: flip(c / "modeling" / "model.safetensors"),
    "one bit of the optimizer": lambda c: flip(next((c / "optimizer").glob("*.distcp"))),
    "one bit of its hidden index": lambda c: flip(c / "optimizer" / ".metadata"),
    "no schedule": lambda c: (c / "lr_scheduler" / "schedule.json").unlink(),
    "a link to nowhere": lambda c: replaced(c).symlink_to("nowhere"),
    "a plain file": lambda c: replaced(c).write_text("mine"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_latest_passes_over_damage_of_any_kind(
    kind: str, unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGE[kind](unfinished / "epoch-0_step-4")
    found = branch.find_checkpoint(unfinished, "latest")
    assert found == unfinished / "epoch-0_step-3"
    said = capsys.readouterr().err
    assert "epoch-0_step-4 is skipped: " in said or kind in ("a link to nowhere", "a plain file")


SHAPES: list[Any] = [
    *(None, [], 1, "x", {"step": 1}, {"position": {"step": -1, "epoch": 0, "sample": 0}}),
    *({"position": {"step": True, "epoch": 0, "sample": 0}}, {"guard": {"loss": {"count": 1}}}),
    *(
        {"counters": []},
        {"counters": {"tokens": "many"}},
        {"seen_new_tokens": "zz"},
        {"engine": {"scale": 1}},
    ),
    *({"rows_per_step": 0}, {"identity": {"dataset": 1}}, {"processes": 1.5}, {"unmeasured": [1]}),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_states_of_the_wrong_shape_are_named_by_file_and_field(shape: Any, unfinished: Path) -> None:
    from llmforge.train.states import STATES, read_states

    file = unfinished / "epoch-0_step-4" / STATES
    if isinstance(shape, dict) and not shape.keys() <= {"step"}:
        shape = {**json.loads(file.read_text()), **shape}
    file.write_text(json.dumps(shape))
    with pytest.raises(UserError, match=r"running_states.json is damaged"):
        read_states(file.parent)


def test_keep_last_deletes_neither_what_it_wrote_nor_what_is_not_its_own(
    unfinished: Path, tmp_path: Path
) -> None:
    flip(unfinished / "epoch-0_step-2" / "modeling" / "config.json")
    (unfinished / "epoch-0_step-2" / "modeling" / "config.json").write_text("{}")
    (unfinished / "epoch-0_step-1" / "notes.txt").write_text("mine")
    shutil.move(unfinished / "epoch-0_step-3", tmp_path / "elsewhere")
    (unfinished / "epoch-0_step-3").symlink_to(tmp_path / "elsewhere")
    branch.remove_old(unfinished, 1, unfinished / "epoch-0_step-4")
    assert names(unfinished) == [f"epoch-0_step-{i}" for i in (1, 2, 3, 4)]
    assert (tmp_path / "elsewhere" / "llmforge.json").is_file()
    (unfinished / "epoch-0_step-1" / "notes.txt").unlink()
    branch.remove_old(unfinished, 1, unfinished / "epoch-0_step-3")  # 4 is not of the branch that wrote 3
    assert names(unfinished) == [f"epoch-0_step-{i}" for i in (2, 3, 4)]


def test_links_and_files_among_checkpoints_block_nothing_and_are_left_alone(
    train: Train, unfinished: Path, whole: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "work").write_text("mine")
    (unfinished / ".epoch-x").write_text("mine")
    (unfinished / ".epoch-0_step-4.partial").symlink_to(theirs)
    (unfinished / ".modeling.partial").symlink_to(theirs)
    shutil.rmtree(unfinished / "epoch-0_step-4")
    (unfinished / "epoch-0_step-4").write_text("mine too")
    (unfinished / "run.json").write_text("")  # as a machine that lost power leaves it
    train(max_steps=4, load_checkpoint="latest")
    assert weights(unfinished) == weights(whole)
    assert [path.name for path in theirs.iterdir()] == ["work"]
    assert (unfinished / ".epoch-x").read_text() == "mine"
    assert (unfinished / "abandoned-1" / "epoch-0_step-4").read_text() == "mine too"
    assert (unfinished / "abandoned-1" / ".epoch-0_step-4.partial").is_symlink()


def test_what_is_in_the_way_of_the_result_is_refused_before_the_work(
    train: Train, unfinished: Path, tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir()
    (unfinished / "modeling").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="modeling exists and was not"):
        train(max_steps=4, load_checkpoint="latest")


def test_the_source_model_may_go_away_or_change_after_the_start(
    train: Train, whole: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_model, source)
    save = Saver.save
    done: list[bool] = []

    def lose(self: Saver, *words: Any) -> None:
        if not done:
            os.truncate(source / "model.safetensors", 0)  # reading a mapped page of it would be SIGBUS
            shutil.rmtree(source)
            done.append(True)
        save(self, *words)

    monkeypatch.setattr(Saver, "save", lose)
    train(model=source, max_steps=4, save_interval=1, trainable="all")
    assert weights(tmp_path / "run") == weights(whole)
    assert branch.damage(tmp_path / "run" / "epoch-0_step-1") is None


def test_a_save_directory_that_is_deleted_ends_the_run_in_one_sentence(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = Saver.save

    def lose(self: Saver, *words: Any) -> None:
        shutil.rmtree(tmp_path / "run")
        save(self, *words)

    monkeypatch.setattr(Saver, "save", lose)
    with pytest.raises(UserError, match=r"--output .*run was deleted or moved during the training"):
        train(max_steps=8, save_interval=2)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "could not be written" not in said
    assert not (tmp_path / "run").exists()


def values(thing: Any) -> Iterator[Any]:
    """Every tensor, array, number and text in `thing`, through containers and dataclasses."""
    if isinstance(thing, (torch.Tensor, np.ndarray)):
        yield np.array(thing.to_local() if hasattr(thing, "to_local") else thing).tobytes()
    elif isinstance(thing, dict):
        for key, value in thing.items():
            yield key
            yield from values(value)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            yield from values(value)
    elif is_dataclass(thing) and not isinstance(thing, type):
        for entry in fields(thing):
            yield from values(getattr(thing, entry.name))
    else:
        yield repr(thing)


@pytest.mark.parametrize("trainable", ["all", "new-embeddings"])
def test_nothing_that_a_background_save_writes_changes_with_later_steps(
    trainable: str, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, write, seen = threading.Event(), Saver._write, []

    def slow(self: Saver, *words: Any) -> None:
        before = list(values(words))
        if threading.current_thread() is not threading.main_thread():
            assert go.wait(60)  # until the main thread has taken two more steps
        seen.append((before, list(values(words))))
        write(self, *words)

    from llmforge.train.trainer import Trainer

    report = Trainer.report

    def count(self: Trainer, figures: Any) -> None:
        if self.position.step == 4:  # before the save of this step, which waits for the one before
            go.set()
        report(self, figures)

    monkeypatch.setattr(Saver, "_write", slow)
    monkeypatch.setattr(Trainer, "report", count)
    train(max_steps=5, save_interval=2, trainable=trainable, skip_save_each_epoch=True)
    assert len(seen) == 3
    assert all(before == after for before, after in seen)
    counted = [
        json.loads((tmp_path / "run" / f"epoch-0_step-{i}" / "running_states.json").read_text())["counters"]
        for i in (2, 4, 5)
    ]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [one["tokens"] for one in counted] == [
        sum(line["tokens"] for line in lines[:i]) for i in (2, 4, 5)
    ]


def test_a_resume_with_other_steps_says_how_the_rate_jumps_and_refuses_fewer_than_are_done(
    train: Train, unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"has done 4 steps, but with --max-steps 3 the run has 3"):
        train(max_steps=3, load_checkpoint="latest")
    train(max_steps=8, load_checkpoint="latest")
    said = capsys.readouterr().err
    assert "the learning rate jumps from 0.001 to 0.0" in said
    assert "at step 5: the run was planned for 4 steps" in said


def test_metrics_have_every_step_once_when_a_run_is_stopped_while_it_measures(
    train: Train, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmforge.train.callbacks.evaluation import Evaluation

    flags = {"max_steps": 4, "eval_data": [tiny_data], "eval_interval": 2, "save_interval": 0}
    train(output=tmp_path / "whole", **flags)
    measure = Evaluation._measure
    asked: list[bool] = []

    def stop(self: Evaluation, figures: Any) -> Any:
        if self.run.position.step == 2 and not asked:
            asked.append(True)
            self.run.asked_to_stop = "SIGTERM"
        return measure(self, figures)

    monkeypatch.setattr(Evaluation, "_measure", stop)
    stopped = train(**flags)
    assert (stopped.step, stopped.reason) == (2, "SIGTERM")
    assert lines(tmp_path / "run") == [0, 1]
    train(**flags, load_checkpoint="latest")

    def figures(save_dir: Path) -> list[Any]:
        read = [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]
        return [(line["step"], line.get("loss"), line.get("holdout_bits_per_byte")) for line in read]

    assert figures(tmp_path / "run") == figures(tmp_path / "whole")


def test_lines_that_a_full_disk_does_not_take_wait_and_are_written_once(tmp_path: Path) -> None:
    from llmforge.train.callbacks.metrics import Lines, cut_metrics

    out = Lines(tmp_path / "metrics.jsonl")
    out._descriptor, kept = os.open("/dev/full", os.O_WRONLY), out._descriptor
    out.write('{"step": 1}')
    os.close(out._descriptor)
    out._descriptor = kept
    out.write('{"step": 2}')
    out.close()
    assert lines(tmp_path) == [1, 2]
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n[1]\n{"step": "x"}\n{"step": 3}\n{"ste')
    cut_metrics(tmp_path / "metrics.jsonl", 2)
    assert lines(tmp_path) == [1, 2]
    cut_metrics(tmp_path / "metrics.jsonl", 0)
    assert lines(tmp_path) == []


@pytest.mark.parametrize("inside", ["model", "load_checkpoint", "data"])
def test_overwrite_never_empties_the_directory_of_its_own_inputs(
    inside: str, train: Train, unfinished: Path, tiny_data: Path
) -> None:
    given: dict[str, Any] = {
        "model": unfinished / "epoch-0_step-1" / "modeling",
        "load_checkpoint": str(unfinished / "epoch-0_step-1"),
        "data": [unfinished / "data"],
    }
    if inside == "data":
        shutil.copytree(tiny_data, unfinished / "data")
    with pytest.raises(UserError):
        train(overwrite=True, max_steps=2, **{inside: given[inside]})
    assert names(unfinished) == [f"epoch-0_step-{i}" for i in (1, 2, 3, 4)]
    assert inside != "data" or (unfinished / "data" / "llmforge.json").is_file()


def test_overwrite_replaces_a_training_with_its_checkpoints(train: Train, unfinished: Path) -> None:
    train(overwrite=True, max_steps=2, learning_rate=1e-3)
    assert names(unfinished) == ["epoch-0_step-2"]
    train(overwrite=True, max_steps=3, learning_rate=1e-3)  # now it is finished
    assert names(unfinished) == ["epoch-0_step-3"]
    (unfinished / "epoch-0_step-3" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"did not write \(epoch-0_step-3/notes\.txt\); move it away"):
        train(overwrite=True, max_steps=2)
