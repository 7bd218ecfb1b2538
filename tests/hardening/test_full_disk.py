"""A disk that is full: one sentence with the file, the need and the room, nothing half-written, and the same command
goes on when there is room.
"""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from warm import TERMINAL, Warm

NAMESPACE = Warm({**os.environ, **TERMINAL}, starter=("unshare", "--mount"))


@pytest.fixture(scope="module", autouse=True)
def namespace() -> Iterator[None]:
    """The process that forks the commands, with mounts of its own, ends with the module."""
    yield
    NAMESPACE.close()


def can_mount() -> bool:
    done = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    return done.returncode == 0


pytestmark = pytest.mark.skipif(
    not shutil.which("unshare") or not can_mount(), reason="needs the right to mount a file system"
)


@pytest.fixture(scope="module")
def made(llmforge, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read."""
    out = tmp_path_factory.mktemp("made")
    shutil.copytree(tiny_model, out / "model")
    lines = [{"text": f"the cat sat on the mat {line} 猫坐在垫子上", "category": "a"} for line in range(2000)]
    (out / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for words in (
        "learn-pieces --source-tokenizer-dir model --corpus corpus.jsonl --num-pieces 5 --output pieces.jsonl",
        "init-tokenizer --source-tokenizer-dir model --expand-tokens-file pieces.jsonl --target-tokenizer-dir tok",
        "init-model --source-model-and-tokenizer-path model --target-tokenizer-path tok --target-model-path grown",
        "prepare-data --data-input-dirs corpus.jsonl --tokenizer-dir tok --data-output-dir data --max-length 64 "
        "--num-spliced-dataset-bins 1 --workers 1",
    ):
        with contextlib.chdir(out):
            llmforge(*words.split())
    return out


COMMANDS = {
    "learn-pieces": "learn-pieces --source-tokenizer-dir model --corpus corpus.jsonl --num-pieces 5 --output DISK/x",
    "init-tokenizer": "init-tokenizer --source-tokenizer-dir model --expand-tokens-file pieces.jsonl "
    "--target-tokenizer-dir DISK/x",
    "init-model": "init-model --source-model-and-tokenizer-path model --target-tokenizer-path tok "
    "--target-model-path DISK/x",
    "prepare-data": "prepare-data --data-input-dirs corpus.jsonl --tokenizer-dir tok --data-output-dir DISK/x "
    "--max-length 64 --num-spliced-dataset-bins 1 --workers 2",
    "train": "train --pretrained grown --dataset data --save-dir DISK/x --max-steps 6 --save-interval 2 "
    "--mixed-precision fp32",
    "export": "export --checkpoint grown --output-dir DISK/x",
    "delta": "delta make --base model --target grown --output DISK/x",
    "evaluate": "evaluate --model model --data a=corpus.jsonl --max-documents 3 --output DISK/x.json",
}


def run_on(disk_bytes: int, words: str, made: Path, place: Path, before: Path) -> tuple[int, str, Path]:
    """(exit code, standard error, copy of the disk afterwards) of a command that writes to a disk of that size, on which
    the files of `before` lie already.
    """
    left = place.with_name("left")
    for directory in (place, before, left):
        directory.mkdir(exist_ok=True)
    inside(f'mount -t tmpfs -o size={disk_bytes} none "$0" && cp -a "$1"/. "$0"', place, before)
    try:
        with contextlib.chdir(made):
            done = NAMESPACE.run(words.replace("DISK", str(place)).split(), {**os.environ, **TERMINAL}, 600)
        shutil.rmtree(left)
        left.mkdir()
        inside('cp -a "$0"/. "$1"', place, left)
    finally:
        inside('umount --lazy "$0"', place)
    return done.returncode, done.stderr, left


def inside(script: str, *words: Path) -> None:
    """Runs a script in the namespace in which the commands see the small disk."""
    enter = ["nsenter", f"--mount=/proc/{NAMESPACE.server().pid}/ns/mnt", "--"]
    subprocess.run([*enter, "sh", "-c", script, *map(str, words)], check=True)


def needed(words: str, made: Path, place: Path, before: Path) -> int:
    code, said, left = run_on(1 << 30, words, made, place, before)
    assert code == 0, said
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in left.rglob("*") if file.is_file())


def fill(name: str, share: float, whole: int, made: Path, tmp_path: Path) -> None:
    code, said, left = run_on(
        max(4096, int(whole * share)), COMMANDS[name], made, tmp_path / "disk", tmp_path / "none"
    )
    if code == 0:  # what is counted as needed is an upper bound
        return
    assert code == 1, said
    assert "Traceback" not in said
    assert "fault of llmforge" not in said
    error = next(line for line in said.splitlines() if line.startswith("error: "))
    assert str(tmp_path / "disk") in error, error
    assert "free" in error, error
    assert not (left / "x" / "llmforge.json").exists()
    hidden = [file for file in left.rglob(".*") if file.is_file() and name not in ("prepare-data", "train")]
    assert not hidden, hidden
    # With room, the same command goes on from what is there.
    again = " --load-checkpoint latest" if (left / "x" / "run.json").is_file() else ""
    before = tmp_path / "before"
    shutil.rmtree(before, ignore_errors=True)
    left.rename(before)
    code, said, _ = run_on(1 << 30, COMMANDS[name] + again, made, tmp_path / "disk", before)
    assert code == 0, said
    shutil.rmtree(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "init-model"])
def test_a_full_disk_is_a_sentence_with_need_and_room(name: str, made: Path, tmp_path: Path) -> None:
    whole = needed(COMMANDS[name], made, tmp_path / "disk", tmp_path / "none")
    fill(name, 0.4, whole, made, tmp_path)


@pytest.mark.stress
@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_is_full_at_any_point_is_a_sentence(name: str, made: Path, tmp_path: Path) -> None:
    whole = needed(COMMANDS[name], made, tmp_path / "disk", tmp_path / "none")
    for share in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9):
        fill(name, share, whole, made, tmp_path)
    print(f"\n{name}: 6 full disks, a sentence each, and done with room")
