"""train.example.sh, copied to train.sh and filled in as its users do, with the real launchers."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COLOSSALAI = bool(find_spec("colossalai") and find_spec("fabric"))


@pytest.fixture
def script(workplace: Path, tmp_path: Path) -> Path:
    """A filled-in train.sh in a directory whose name has a space and Chinese characters."""
    place = tmp_path / "我的 run"
    place.mkdir()
    text = (ROOT / "train.example.sh").read_text()
    values = {
        "PROJECT_NAME": "项目 one",
        "PARENT_SAVE_DIR": "保存 runs",
        "PARENT_TENSORBOARD_DIR": "logs",
        "PARENT_CONFIG_FILE": "configs",
        "PRETRAINED_MODEL_PATH": str(workplace / "model"),
    }
    for name, value in values.items():
        text, count = re.subn(f"(?m)^{name}=.*", f'{name}="{value}"', text)
        assert count == 1
    parts = "".join(f'    "{workplace}/语料 data/arrow/part-0000{i}"\n' for i in range(2))
    text, count = re.subn(r"(?ms)^declare -a dataset=\(.*?^\)", f"declare -a dataset=(\n{parts})", text)
    assert count == 1
    (place / "train.sh").write_text(text)
    shutil.copymode(ROOT / "train.example.sh", place / "train.sh")
    return place / "train.sh"


def run(script: Path, *words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    done = subprocess.run(
        ["./train.sh", "--micro_batch_size", "2", *words],
        cwd=script.parent,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "PROCESSES": "2", "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_the_example_script_trains_through_colossalai_or_torchrun(script: Path) -> None:
    words = ["--save_interval", "2", "--max_steps", "3"]
    if COLOSSALAI:
        done = run(script, *words, "--rehearse", TOKEN="s3cret")
    else:
        done = run(script, *words, LAUNCHER="torchrun", PLUGIN="ddp", TOKEN="s3cret")
    assert "s3cret" not in done.stdout + done.stderr
    assert "flash-attn is not available" in done.stderr  # the script asks for it, as on GPUs
    save_dir = script.parent / "保存 runs" / "项目 one"
    assert (save_dir / "modeling" / "config.json").is_file()
    assert len((save_dir / "metrics.jsonl").read_text().splitlines()) == 3
    assert (script.parent / "configs" / "项目 one.yaml").is_file()
    assert list((script.parent / "logs" / "项目 one").glob("events*"))
    manifest: dict[str, Any] = json.loads((save_dir / "llmforge.json").read_text())
    assert manifest["arguments"]["warmup_steps"] == 100
    assert len(manifest["arguments"]["parts"]) == 2


def test_the_example_script_can_use_launch(script: Path) -> None:
    (script.parent / "hostfile").write_text("localhost\n")
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    text = script.read_text().replace("--nproc-per-node", f"--master-port {port} --nproc-per-node")
    script.write_text(text)
    done = run(script, "--pretrained", "nowhere", LAUNCHER="llmforge", PLUGIN="ddp", code=1)
    assert "localhost: lacks nowhere" in done.stderr


def test_an_unknown_launcher_is_refused(script: Path) -> None:
    assert "LAUNCHER is mpirun" in run(script, LAUNCHER="mpirun", code=2).stderr


def test_the_example_hostfile_is_one_that_both_launchers_read() -> None:
    lines = (ROOT / "hostfile.example").read_text().splitlines()
    assert lines
    assert all(re.fullmatch(r"[\w-]+", line) for line in lines)  # ColossalAI takes a comment for a host
