"""A killed preparation goes on to the identical dataset; shards and Ray give the same one."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmforge.corpus import find_chunks
from llmforge.dataset.prepare import chunks_of_shard
from llmforge.errors import UserError
from llmforge.steps.places import LOCK_TEXT

from .conftest import contents, write_jsonl
from .test_prepare import corpus

Prepare = Callable[..., Any]
SMALL_CHUNKS = (
    "import sys; from llmforge.corpus import sources; from llmforge.dataset import writing;"
    "sources.SMALLEST_CHUNK = 60_000;"
    "writing.WINDOW_TOKENS = 20_000; from llmforge.cli.main import main; main()"
)


def command(tmp_path: Path, tokenizer: Path, output: str) -> list[str]:
    words = [sys.executable, "-c", SMALL_CHUNKS, "prepare-data", "--data-input-dirs", str(tmp_path / "in")]
    words += [
        "--tokenizer-dir",
        str(tokenizer),
        "--data-output-dirs",
        str(tmp_path / output),
        "--workers",
        "2",
    ]
    return [
        *words,
        "--max-length",
        "256",
        "--num-spliced-dataset-bins",
        "4",
        "--holdout",
        "2%",
        "--dedup",
        "exact",
    ]


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.stress)])
def test_killed_at_random_moments_the_dataset_is_the_same_byte_for_byte(
    kills: int, tmp_path: Path, byte_level: Path
) -> None:
    records = corpus(6000)
    write_jsonl(tmp_path / "in/zh/x.jsonl", [*records, *records[:50]])
    write_jsonl(tmp_path / "in/en/y.jsonl", corpus(6000, seed=1))
    began = time.monotonic()
    subprocess.run(command(tmp_path, byte_level, "whole"), check=True, capture_output=True)
    lasted = time.monotonic() - began
    expected = contents(tmp_path / "whole")
    chance, killed = random.Random(0), 0
    finished = tmp_path / "out/llmforge.json"
    while killed < kills:
        process = subprocess.Popen(
            command(tmp_path, byte_level, "out"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            process.wait(chance.uniform(0.05, 1.0) * lasted)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
        if finished.exists():
            assert contents(tmp_path / "out") == expected
            if killed < kills:
                subprocess.run(["rm", "-r", str(tmp_path / "out")], check=True)
    subprocess.run(command(tmp_path, byte_level, "out"), check=True, capture_output=True)
    assert contents(tmp_path / "out") == expected
    assert not (tmp_path / ".out.partial").exists()


def test_what_is_finished_is_not_done_again(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmforge.dataset import assemble, shards

    monkeypatch.setattr("llmforge.corpus.sources.SMALLEST_CHUNK", 4000)
    write_jsonl(tmp_path / "in/x.jsonl", corpus(300))
    expected = contents(prepare(tmp_path / "in", name="whole").output)

    def die(*_: object) -> Any:
        raise KeyboardInterrupt

    real_write, parts = assemble.write_part, []

    def write_two(settings: Any, number: int, directory: str) -> Any:
        if number == 2:
            die()
        parts.append(number)
        return real_write(settings, number, directory)

    monkeypatch.setattr(assemble, "write_part", write_two)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "in")
    assert parts == [0, 1]
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(assemble, "write_part", real_write)
    monkeypatch.setattr(shards, "read_blocks", die)  # every shard is finished, so nothing is read again
    assert contents(prepare(tmp_path / "in").output) == expected
    assert prepare(tmp_path / "in").skipped


def test_a_worker_that_is_killed_costs_only_what_it_was_doing(tmp_path: Path, byte_level: Path) -> None:
    """Killed by the system, as for want of memory, and not the command itself."""
    for i in range(10):  # so many that some are still to be read when the first is done
        write_jsonl(tmp_path / f"in/zh/{i}.jsonl", corpus(1500, seed=i))
    words = command(tmp_path, byte_level, "out")
    shards = tmp_path / ".out.partial/.work/shards"
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while not (done := list(shards.glob("*.json"))) and process.poll() is None:
        time.sleep(0.005)
    for child in [worker for started in children(process.pid) for worker in children(started)]:
        os.kill(child, signal.SIGKILL)
    said = process.communicate()[1]
    assert process.returncode == 1, said
    assert "a worker process was killed" in said
    assert all(path.is_file() for path in done)
    subprocess.run(words, check=True, capture_output=True)
    subprocess.run(command(tmp_path, byte_level, "whole"), check=True, capture_output=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_two_runs_on_one_output_and_other_arguments_are_refused(
    tmp_path: Path, byte_level: Path, prepare: Prepare
) -> None:
    import fcntl

    write_jsonl(tmp_path / "in/x.jsonl", corpus(20))
    (tmp_path / ".out.lock").write_bytes(LOCK_TEXT)
    holder = os.open(tmp_path / ".out.lock", os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another llmforge process is writing"):
        prepare(tmp_path / "in")
    os.close(holder)
    prepare(tmp_path / "in")
    with pytest.raises(UserError, match="--overwrite"):
        prepare(tmp_path / "in", seed=7)


def test_shards_of_many_machines_make_the_same_dataset(
    prepare: Prepare, tmp_path: Path, byte_level: Path, llama_like: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmforge.corpus.sources.SMALLEST_CHUNK", 4000)
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"in/{name}.jsonl", [*corpus(200, seed=ord(name)), {"target": ""}])
    options: dict[str, Any] = {"holdout": 0.02, "dedup": "exact"}
    expected = contents(prepare(tmp_path / "in", name="whole", **options).output)
    chunks = find_chunks([tmp_path / "in"])
    parts = [chunks_of_shard(chunks, i, 3) for i in range(3)]
    assert [chunk for part in parts for chunk in part] == chunks
    with pytest.raises(UserError, match="contains no shard"):
        prepare(tmp_path / "in", merge=True, **options)
    for number in (2, 0):
        prepare(tmp_path / "in", shard=(number, 3), **options)
    with pytest.raises(UserError, match="1-of-3 is missing; run --shard 1/3"):
        prepare(tmp_path / "in", merge=True, **options)
    prepare(tmp_path / "in", shard=(1, 3), **options)
    assert prepare(tmp_path / "in", shard=(1, 3), **options).skipped
    with pytest.raises(UserError, match=r"made with holdout = 0\.02, not 0\.5"):
        prepare(tmp_path / "in", merge=True, **{**options, "holdout": 0.5})
    assert contents(prepare(tmp_path / "in", merge=True, **options).output) == expected


@pytest.mark.slow
def test_ray_gives_the_same_dataset(prepare: Prepare, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    write_jsonl(tmp_path / "in/x.jsonl", corpus(300))
    expected = contents(prepare(tmp_path / "in", name="whole", holdout=0.02).output)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    try:
        assert contents(prepare(tmp_path / "in", ray="auto", holdout=0.02).output) == expected
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_ray_survives_tasks_that_end_while_the_next_is_asked_for() -> None:
    """Giving up tasks with `ray.cancel` ended the process here within a second: see `RayRun`."""
    pytest.importorskip("ray")
    code = (
        "import ray; from llmforge.dataset.workers import RayRun, is_small\n"
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)\n"
        "run = RayRun('auto')\n"
        "for _ in range(100): assert list(run(is_small, [([],), ([],)])) == [True, True]\n"
        "print('survived')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip().endswith("survived"), done.stderr


def test_intermediate_files_can_lie_elsewhere_and_do_not_stay(prepare: Prepare, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/x.jsonl", corpus(50))
    expected = contents(prepare(tmp_path / "in", name="whole").output)
    assert contents(prepare(tmp_path / "in", cache_dir=tmp_path / "cache").output) == expected
    assert list((tmp_path / "cache").iterdir()) == []
