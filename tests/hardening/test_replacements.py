"""One output, replaced by several processes at once and by ones that are killed."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

from test_outputs import step, write

from llmforge.errors import UserError
from llmforge.steps import read_manifest, run_step


def export_again(output: Path, number: int, go: "multiprocessing.synchronize.Event", results) -> None:
    go.wait()
    for n in range(6):
        try:
            run_step(step(output, arguments={"n": [number, n]}, overwrite=True), write)
            results.put("done")
        except UserError as error:
            results.put(
                "another" if "another llmforge process is writing" in str(error) else f"refused: {error}"
            )
        except BaseException as error:
            results.put(f"{type(error).__name__}: {error}")


def test_processes_that_replace_one_output_at_once_never_fail(tmp_path):
    context = multiprocessing.get_context("fork")
    go, results = context.Event(), context.Queue()
    run_step(step(tmp_path / "out"), write)
    workers = [
        context.Process(target=export_again, args=(tmp_path / "out", number, go, results))
        for number in range(20)
    ]
    for worker in workers:
        worker.start()
    go.set()
    found = [results.get(timeout=60) for _ in range(120)]
    for worker in workers:
        worker.join()
    assert set(found) <= {"done", "another"}
    assert "done" in found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    read_manifest(tmp_path / "out", "grow")


def go_on(output: Path, go: "multiprocessing.synchronize.Event", results) -> None:
    go.wait()
    try:
        results.put("skipped" if run_step(step(output), write).skipped else "built")
    except UserError as error:
        results.put("another" if "another llmforge process is writing" in str(error) else str(error))


def test_a_replacement_cut_between_its_renames_is_undone_by_one_of_many(tmp_path):
    context = multiprocessing.get_context("fork")
    for _ in range(10):
        run_step(step(tmp_path / "out"), write)
        (tmp_path / "out").rename(tmp_path / ".out.replaced")
        go, results = context.Event(), context.Queue()
        workers = [context.Process(target=go_on, args=(tmp_path / "out", go, results)) for _ in range(4)]
        for worker in workers:
            worker.start()
        go.set()
        found = {results.get(timeout=60) for _ in workers}
        for worker in workers:
            worker.join()
        assert found <= {"skipped", "another"}
        assert "skipped" in found
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def killed_at(output: Path, call: int) -> None:
    """Replaces `output` and is killed at its `call`th call of the system that changes or syncs anything."""
    count = 0

    def counting(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in ("os.rename", "os.rmdir", "os.remove", "os.mkdir", "open", "fcntl.flock"):
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(counting)
    run_step(step(output, arguments={"n": 2}, overwrite=True), write)


def test_a_kill_at_any_point_of_a_replacement_leaves_the_old_output_or_the_new_one(tmp_path):
    context = multiprocessing.get_context("fork")
    out = tmp_path / "out"
    call, kills = 0, 0
    while True:
        call += 1
        run_step(step(out, overwrite=True), write)
        worker = context.Process(target=killed_at, args=(out, call))
        worker.start()
        worker.join()
        after = [path.name for path in tmp_path.iterdir()]
        if out.exists():
            assert read_manifest(out).arguments["n"] in (1, 2)
        else:
            assert ".out.replaced" in after
        finished = run_step(step(out, arguments={"n": 2}, overwrite=True), write)
        assert finished.manifest.arguments == {"n": 2}
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        if worker.exitcode == 0:
            break
        kills += 1
    assert kills > 10
