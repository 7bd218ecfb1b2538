"""Trainings of a two-layer LLaMA by ColossalAI's plugins on the CPU, many in one start of the processes."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from warm import Warm

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
BF16, FP32 = "bf16", "fp32"
COMMON = {
    "learning_rate": 1e-2,
    "schedule": "constant",
    "save_interval": 3,
    "skip_save_each_epoch": True,
    "rehearse": True,
}
# name: flags. The rows of a step are 8 in each: micro-batch x accumulation x data ranks.
NATIVE: dict[str, dict[str, Any]] = {
    f"native-{word}": {"plugin": "ddp", "rehearse": False, "mixed_precision": FP32, "tied": word == "tied"}
    for word in ("untied", "tied")
}
TWO: dict[str, dict[str, Any]] = {
    "torch_ddp": {"plugin": "torch_ddp", "mixed_precision": FP32},
    "zero1": {"plugin": "zero1"},
    "zero1-fp32": {"plugin": "zero1", "mixed_precision": FP32},
    "zero2": {"plugin": "zero2"},
    "zero2_cpu": {"plugin": "zero2_cpu"},
    "gemini": {"plugin": "gemini"},
    "gemini_auto": {"plugin": "gemini_auto"},
    "3d-zero-0": {"plugin": "3d"},
    "3d-zero-1": {"plugin": "3d", "zero": 1},
    "3d-zero-2": {"plugin": "3d", "zero": 2},
    "3d-tp": {"plugin": "3d", "tp": 2, "mixed_precision": FP32, "micro_batch_size": 4},
    "3d-tp-bf16": {"plugin": "3d", "tp": 2, "micro_batch_size": 4},
    "3d-pp": {"plugin": "3d", "pp": 2, "mixed_precision": FP32, "micro_batch_size": 4},
    "3d-sp": {"plugin": "3d", "sp": 2, "mixed_precision": FP32, "micro_batch_size": 4},
    "3d-split_gather": {
        "plugin": "3d",
        "tp": 2,
        "sp_mode": "split_gather",
        "mixed_precision": FP32,
        "micro_batch_size": 4,
    },
}
FOUR: dict[str, dict[str, Any]] = {
    "3d-tp-pp": {"plugin": "3d", "tp": 2, "pp": 2, "mixed_precision": FP32, "micro_batch_size": 4},
    "3d-tp-pp-tied": {
        "plugin": "3d",
        "tp": 2,
        "pp": 2,
        "mixed_precision": FP32,
        "micro_batch_size": 4,
        "tied": True,
    },
    "3d-split_gather-pp": {
        "plugin": "3d",
        "tp": 2,
        "pp": 2,
        "sp_mode": "split_gather",
        "mixed_precision": FP32,
        "micro_batch_size": 4,
    },
    "3d-pp-zero-1": {"plugin": "3d", "pp": 2, "zero": 1, "pipeline_micro_batch_size": 2},
    "3d-tp-zero-2": {"plugin": "3d", "tp": 2, "zero": 2},
    "3d-tp-sp": {"plugin": "3d", "tp": 2, "sp": 2, "mixed_precision": FP32, "micro_batch_size": 4},
}


@pytest.fixture(scope="session")
def models(
    make_tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[bool, Path]:
    """Two directories of a model with 384 rows, by whether its head is tied to the embeddings."""
    root = tmp_path_factory.mktemp("llama")
    sizes = {"vocab_size": 384, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 8, "num_key_value_heads": 4}
    return {
        tied: make_tiny_model(root / f"tied-{tied}", tie_word_embeddings=tied, **sizes)
        for tied in (True, False)
    }


@pytest.fixture(scope="session")
def ranks() -> Iterator[Warm]:
    """Forks processes that have imported what all plugins import."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    warm = Warm({**ENVIRONMENT, "PYTHONPATH": path}, ["ranks", "imported"])
    yield warm
    warm.close()


@pytest.fixture(scope="session")
def fork(ranks: Warm) -> Callable[..., None]:
    """`fork("worker.py", 2, file)` runs that file of this directory."""

    def run(name: str, *words: object) -> None:
        done = ranks.run([str(HERE / name), *map(str, words)], ENVIRONMENT, 900)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"

    return run


@pytest.fixture(scope="session")
def run_program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[int, str]]]:
    """`run_program("import colossalai")` is the exit code and standard error of a program, in a process that has torch
    and transformers imported and nothing of ColossalAI's.
    """
    warm = Warm(ENVIRONMENT, ["peft", "transformers.models.llama.modeling_llama"])

    def run(text: str) -> tuple[int, str]:
        file = tmp_path_factory.mktemp("programs") / "program.py"
        file.write_text(text)
        done = warm.run([str(file)], ENVIRONMENT, 240)
        return done.returncode, done.stderr

    yield run
    warm.close()


@pytest.fixture(scope="session")
def start(
    fork: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, str | None]]:
    """`start(processes, cases)` runs the cases and returns what each raised."""

    def run(processes: int, cases: list[dict[str, Any]]) -> dict[str, str | None]:
        file = tmp_path_factory.mktemp("cases") / "cases.json"
        file.write_text(json.dumps(cases, default=str))
        fork("worker.py", processes, file)
        return dict(json.loads(file.with_name("results.json").read_text()))

    return run


@pytest.fixture(scope="session")
def case(models: dict[bool, Path], tiny_data: Path) -> Callable[..., dict[str, Any]]:
    """`case(name, save_dir, plugin="zero2", ...)`: the flags of one training."""

    def make(name: str, save_dir: Path, **flags: Any) -> dict[str, Any]:
        tied = flags.pop("tied", False)
        rows = {"micro_batch_size": 2, "gradient_accumulation_steps": 2}
        common = {"model": models[tied], "data": [tiny_data], "mixed_precision": BF16}
        return {"name": name, "output": save_dir, **COMMON, **common, **rows, **flags}

    return make


@pytest.fixture(scope="session")
def lines() -> Callable[[Path], list[dict[str, Any]]]:
    def read(save_dir: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]

    return read


@pytest.fixture(scope="session")
def stop_after() -> Callable[[Path, Path, str], None]:
    """`stop_after(whole, save_dir, "epoch-0_step-3")` leaves in `save_dir` what a run stopped there has left."""

    def copy(whole: Path, save_dir: Path, step: str) -> None:
        save_dir.mkdir()
        shutil.copytree(whole / step, save_dir / step)
        for name in ("run.json", "metrics.jsonl"):
            shutil.copy(whole / name, save_dir / name)

    return copy
