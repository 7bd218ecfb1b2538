"""experiments/gpu.sh, rehearsed on a CPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from experiments.arms import ARMS, MEASURED, all_arms

from experiments import gpu

SCRIPT = Path(gpu.__file__).with_suffix(".sh")


def test_one_learning_rate_of_each_arm_comes_first_in_order_of_worth():
    order = [arm.name for arm in gpu.in_order(all_arms(ARMS / "gpu"))]
    assert [name.split(".")[0] for name in order] == [*gpu.ORDER, *gpu.ORDER]


@pytest.mark.stress
def test_every_arm_is_measured_at_every_point_and_one_that_fails_costs_no_other(tmp_path):
    broken = tmp_path / "sitecustomize.py"  # the first arm fails while it prepares
    broken.write_text(
        "import os, sys\n"
        "if os.environ.get('LLMFORGE_EXPERIMENTS'):\n"
        "    import experiments.run as run\n"
        "    prepare = run.prepare\n"
        "    def fails(arm, base):\n"
        "        if arm.name.startswith('un-grown'):\n"
        "            raise RuntimeError('out of memory')\n"
        "        return prepare(arm, base)\n"
        "    run.prepare = fails\n"
    )
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": f"{tmp_path}:{SCRIPT.parents[1]}", "RESULTS": str(tmp_path / "all.jsonl")}
    command = ["bash", SCRIPT, "--tiny", "--seconds", "3000", tmp_path / "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert ["out of memory" in one.get("failed", "") for one in said] == [True, False, False, False]
    parts = {}
    for line in map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines()):
        parts.setdefault(line["arm"].split(".")[0], []).append(line["part"])
    assert parts == {name: list(MEASURED) for name in gpu.ORDER[1:]}
    assert "distill" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.stress
def test_a_call_ends_in_its_time(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    command = ["bash", SCRIPT, "--tiny", "--seconds", "60", tmp_path / "out"]
    subprocess.run(command, env=environment, capture_output=True, timeout=600)
    assert time.monotonic() - began < 60 + gpu.ENDING
