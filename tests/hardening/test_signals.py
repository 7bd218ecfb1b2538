"""Signals to the commands that work with processes of their own: nothing is left behind, the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from warm import heed_signals


def session_of(leader: int) -> list[int]:
    """Processes of the session that `leader` began and that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found


WORKERS, RAY = ["--workers", "2"], ["--workers", "2", "--ray", "local"]


@pytest.mark.parametrize(
    ("number", "how"),
    [
        pytest.param(signal.SIGTERM, WORKERS, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, WORKERS, marks=pytest.mark.stress),
        pytest.param(signal.SIGHUP, WORKERS, marks=pytest.mark.stress),
        pytest.param(signal.SIGTERM, RAY, marks=pytest.mark.stress),
        pytest.param(signal.SIGINT, RAY, marks=pytest.mark.stress),
    ],
)
def test_an_ended_preparation_leaves_no_process_and_goes_on(tiny_tokenizer, llmforge, tmp_path, number, how):
    for name in "abcd":
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for line in range(30_000):
                file.write(
                    json.dumps({"text": f"the cat sat on the mat {line} and then the rat ate {name}"}) + "\n"
                )
    words = [
        "prepare-data",
        "--data-input-dirs",
        *(str(tmp_path / f"{n}.jsonl") for n in "abcd"),
        "--tokenizer-dir",
    ]
    words += [str(tiny_tokenizer), "--max-length", "64", "--num-spliced-dataset-bins", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "llmforge", *words, *how, "--data-output-dir", str(tmp_path / "data")],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=heed_signals,
    )
    deadline = time.monotonic() + 120
    while not any((tmp_path / ".data.partial").rglob("*.arrow")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 128 + number, messages
    assert "Traceback" not in messages
    deadline = time.monotonic() + 30
    while left := session_of(process.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert not (tmp_path / "data").exists()
    llmforge(*words, "--data-output-dir", tmp_path / "data")
    llmforge(*words, "--data-output-dir", tmp_path / "whole")
    for part in (tmp_path / "whole" / "arrow").rglob("*.arrow"):
        same = tmp_path / "data" / part.relative_to(tmp_path / "whole")
        assert same.read_bytes() == part.read_bytes()
