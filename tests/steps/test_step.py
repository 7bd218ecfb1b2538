"""Steps: skipped when done, refused when foreign, never half-written."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from llmforge.errors import InterruptionError, UserError
from llmforge.steps import Outcome, Step, fingerprint, manifest_path, read_manifest, run_step


def build(text: str = "whole"):
    def write(path: Path) -> Outcome:
        (path / "sub").mkdir(exist_ok=True)
        (path / "sub" / "file.txt").write_text(text)
        return Outcome(outputs={"size": 1}, metrics={"lines": 7})

    return write


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.txt"
    path.write_text("input")
    return path


def step(tmp_path: Path, source: Path, **changes) -> Step:
    values = {
        "name": "grow",
        "output": tmp_path / "out",
        "arguments": {"n": 1},
        "inputs": [source],
        **changes,
    }
    return Step(**values)


def test_a_finished_step_holds_what_it_built_and_a_manifest(tmp_path, source):
    finished = run_step(step(tmp_path, source), build())
    assert not finished.skipped
    assert (tmp_path / "out" / "sub" / "file.txt").read_text() == "whole"
    manifest = json.loads((tmp_path / "out" / "llmforge.json").read_text())
    assert manifest["step"] == "grow"
    assert manifest["arguments"] == {"n": 1}
    assert manifest["inputs"] == [{"path": str(source), "fingerprint": fingerprint(source)}]
    assert manifest["outputs"]["files"] == {"sub/file.txt": 5}
    assert manifest["outputs"]["checksums"] == {"sub/file.txt": fingerprint(tmp_path / "out/sub/file.txt")}
    assert manifest["outputs"]["size"] == 1
    assert manifest["metrics"] == {"lines": 7}
    assert list(manifest) == [
        "step",
        "llmforge",
        "created",
        "arguments",
        "inputs",
        "outputs",
        "metrics",
        "checksum",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source.txt"]


def test_the_same_step_again_is_skipped(tmp_path, source):
    first = run_step(step(tmp_path, source), build())

    def never(path: Path) -> Outcome:
        raise AssertionError("built again")

    again = run_step(step(tmp_path, source), never)
    assert again.skipped
    assert again.manifest == first.manifest


def test_moved_inputs_are_the_same_inputs(tmp_path, source):
    run_step(step(tmp_path, source), build())
    moved = tmp_path / "moved.txt"
    source.rename(moved)
    assert run_step(step(tmp_path, moved), build()).skipped


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"arguments": {"n": 2}}, "with n = 1 rather than 2"),
        ({"name": "shrink"}, "is the output of llmforge grow"),
    ],
)
def test_another_step_on_the_same_output_is_refused(tmp_path, source, change, sentence):
    run_step(step(tmp_path, source), build())
    with pytest.raises(UserError, match=sentence) as refused:
        run_step(step(tmp_path, source, **change), build("other"))
    assert "--overwrite" in str(refused.value)
    assert (tmp_path / "out" / "sub" / "file.txt").read_text() == "whole"


def test_changed_inputs_are_refused_and_overwrite_builds_anew(tmp_path, source):
    run_step(step(tmp_path, source), build())
    source.write_text("another input")
    with pytest.raises(UserError, match=r"source\.txt differs.*--overwrite"):
        run_step(step(tmp_path, source), build("other"))
    finished = run_step(step(tmp_path, source, overwrite=True), build("other"))
    assert not finished.skipped
    assert (tmp_path / "out" / "sub" / "file.txt").read_text() == "other"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source.txt"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_directory_is_never_touched(tmp_path, source, overwrite):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("three years of work")
    with pytest.raises(UserError, match="was not written by llmforge"):
        run_step(step(tmp_path, source, overwrite=overwrite), build())
    assert (tmp_path / "out" / "thesis.tex").read_text() == "three years of work"


def test_an_empty_directory_is_filled(tmp_path, source):
    (tmp_path / "out").mkdir()
    run_step(step(tmp_path, source), build())
    assert read_manifest(tmp_path / "out", "grow").metrics == {"lines": 7}


def test_a_failed_build_leaves_nothing(tmp_path, source):
    def fail(path: Path) -> Outcome:
        (path / "half").write_text("half")
        raise UserError("no.")

    with pytest.raises(UserError, match="no"):
        run_step(step(tmp_path, source), fail)
    assert [p.name for p in tmp_path.iterdir()] == ["source.txt"]


def test_a_failed_replacement_keeps_the_old_output(tmp_path, source):
    run_step(step(tmp_path, source), build())

    def fail(path: Path) -> Outcome:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run_step(step(tmp_path, source, arguments={"n": 2}, overwrite=True), fail)
    assert run_step(step(tmp_path, source), build()).skipped


def test_a_replacement_cut_between_its_renames_is_undone(tmp_path, source):
    run_step(step(tmp_path, source), build())
    (tmp_path / "out").rename(tmp_path / ".out.replaced")
    assert run_step(step(tmp_path, source), build()).skipped


def test_an_output_that_was_changed_is_not_taken_for_finished(tmp_path, source):
    run_step(step(tmp_path, source), build())
    ((tmp_path / "out" / "sub" / "file.txt").write_text("who"),)
    with pytest.raises(UserError, match=r"file\.txt was changed.*--overwrite"):
        run_step(step(tmp_path, source), build())
    with pytest.raises(
        UserError, match=r"was changed after llmforge grow .* run llmforge grow with --overwrite"
    ):
        fingerprint(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "command"),
    [("train-adapter", "train"), ("train-checkpoint", "train"), ("delta-make", "delta make")],
)
def test_a_changed_file_is_reported_with_the_command_as_it_is_typed(name, command, tmp_path, source):
    run_step(step(tmp_path, source, name=name), build())
    (tmp_path / "out" / "sub" / "file.txt").write_text("who")
    with pytest.raises(UserError, match=f"after llmforge {command} finished .* run llmforge {command} with"):
        fingerprint(tmp_path / "out")
    with pytest.raises(UserError, match=f"was written by llmforge {command}; "):
        read_manifest(tmp_path / "out", "prepare-data")


def test_an_output_that_is_an_input_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("x")
    with pytest.raises(UserError, match="both an input and the output"):
        run_step(step(tmp_path, tmp_path / "out" / "file"), build())


def test_a_file_gets_its_manifest_beside_it(tmp_path, source):
    def write(path: Path) -> Outcome:
        path.write_text("pieces")
        return Outcome()

    file_step = step(tmp_path, source, output=tmp_path / "pieces.jsonl", single_file=True)
    run_step(file_step, write)
    assert (tmp_path / "pieces.jsonl").read_text() == "pieces"
    assert manifest_path(tmp_path / "pieces.jsonl") == tmp_path / "pieces.jsonl.llmforge.json"
    assert run_step(file_step, write).skipped
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "pieces.jsonl",
        "pieces.jsonl.llmforge.json",
        "source.txt",
    ]


def test_a_resumable_step_finds_what_it_left_only_for_the_same_plan(tmp_path, source):
    def fail(path: Path) -> Outcome:
        (path / "shard-0").write_text("made")
        raise KeyboardInterrupt

    def go_on(path: Path) -> Outcome:
        return Outcome(metrics={"found": (path / "shard-0").exists()})

    with pytest.raises(KeyboardInterrupt):
        run_step(step(tmp_path, source, resumable=True), fail)
    other = run_step(
        step(tmp_path, source, resumable=True, output=tmp_path / "out", arguments={"n": 2}), go_on
    )
    assert other.manifest.metrics == {"found": False}
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run_step(step(tmp_path, source, resumable=True), fail)
    assert run_step(step(tmp_path, source, resumable=True), go_on).manifest.metrics == {"found": True}


def test_a_manifest_that_a_kill_left_unfinished_is_no_file_of_the_output(tmp_path, source):
    def cut(path: Path) -> Outcome:
        (path / "made").write_text("made")
        (path / ".llmforge.json.tmp").write_text('{\n  "step"')  # a kill in the last moment before its rename
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_step(step(tmp_path, source, resumable=True), cut)
    finished = run_step(step(tmp_path, source, resumable=True), lambda path: Outcome())
    assert list(finished.manifest.files) == ["made"]


def test_a_mistake_leaves_nothing_to_go_on_from(tmp_path, source):
    def refuse(path: Path) -> Outcome:
        (path / "shard-0").write_text("made")
        raise UserError("the corpus is empty.")

    with pytest.raises(UserError):
        run_step(step(tmp_path, source, resumable=True), refuse)
    assert [p.name for p in tmp_path.iterdir()] == ["source.txt"]


@pytest.mark.parametrize("resumable", [True, False])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), InterruptionError("a worker was killed.")]
)
def test_what_stops_the_work_from_outside_leaves_what_is_finished(tmp_path, source, error, resumable):
    def stop(path: Path) -> Outcome:
        (path / "shard-0").write_text("made")
        raise error

    def go_on(path: Path) -> Outcome:
        return Outcome(metrics={"found": (path / "shard-0").exists()})

    with pytest.raises(
        InterruptionError,
        match=r"not enough disk space for .*out \(no space left\); free some|worker was killed",
    ):
        run_step(step(tmp_path, source, resumable=resumable), stop)
    assert not (tmp_path / "out").exists()
    finished = run_step(step(tmp_path, source, resumable=resumable), go_on)
    assert finished.manifest.metrics == {"found": resumable}


def hold(tmp_path: Path, source: Path) -> None:
    def wait(path: Path) -> Outcome:
        (tmp_path / "started").touch()
        time.sleep(60)
        return Outcome()

    run_step(step(tmp_path, source), wait)


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path, source):
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, source))
    holder.start()
    try:
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        with pytest.raises(UserError, match="another llmforge process is writing"):
            run_step(step(tmp_path, source), build())
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
    assert not (tmp_path / "out").exists()
    assert not run_step(step(tmp_path, source), build()).skipped
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source.txt", "started"]


def test_an_unwritable_place_is_named(tmp_path, source):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run_step(step(tmp_path, source, output=tmp_path / "file" / "out"), build())
