"""ColossalAI 0.5.0's own faults, and llmforge's adjustments for them: without the adjustment each shows, so a mended
ColossalAI shows itself here.
"""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("colossalai")

# name: the adjustment that is undone, and the flags under which its fault shows.
FAULTS: dict[str, dict[str, Any]] = {
    "masters": {"plugin": "zero2", "load_checkpoint": "latest"},
    "chunks": {"plugin": "gemini"},
    "buffers": {"plugin": "zero2"},
    # Nothing is a jump but what is above 0 standard deviations once twenty steps are known.
    "discard": {
        "plugin": "gemini",
        "on_spike": "skip",
        "spike_threshold": 0.0,
        "gradient_accumulation_steps": 1,
        "num_epochs": 3,
        "max_steps": None,
    },
    "shared_parameters": {"plugin": "3d", "pp": 2, "micro_batch_size": 4, "trainable": "0", "tied": True},
    "ring": {
        "plugin": "3d",
        "tp": 2,
        "sp_mode": "split_gather",
        "micro_batch_size": 4,
        "mixed_precision": "fp32",
    },
    # The last: its undone run breaks off, and with it the connection of the two processes.
    "own_norm": {"plugin": "3d", "pp": 2, "zero": 1, "micro_batch_size": 4, "trainable": "0"},
}


@pytest.fixture(scope="session")
def undone(
    start: Any, case: Any, stop_after: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """Each training with its adjustment (`name`) and without it (`name-undone`): the directory, what each raised."""
    root = tmp_path_factory.mktemp("faults")
    results = start(2, [case("whole", root / "whole", **{**FAULTS["masters"], "load_checkpoint": None})])
    for name in ("masters", "masters-undone"):
        stop_after(root / "whole", root / name, "epoch-0_step-3")
    cases = []
    for name, flags in FAULTS.items():
        flags = {"max_steps": 4, **flags} if "load_checkpoint" not in flags else flags
        cases.append(case(name, root / name, **flags))
        cases.append({**case(f"{name}-undone", root / f"{name}-undone", **flags), "without": name})
    return root, results | start(2, cases)


def test_resuming_is_exact_only_with_the_float32_weights(undone: Any, lines: Any) -> None:
    root, results = undone
    assert results["masters"] is results["masters-undone"] is None
    expected = [line["loss"] for line in lines(root / "whole")]
    assert [line["loss"] for line in lines(root / "masters")] == expected
    assert [line["loss"] for line in lines(root / "masters-undone")] != expected


def test_gathered_chunks_add_up_micro_batches_wrongly(undone: Any, lines: Any) -> None:
    root, results = undone
    assert results["chunks"] is results["chunks-undone"] is None
    right, wrong = (lines(root / name)[0]["gradient_norm"] for name in ("chunks", "chunks-undone"))
    assert wrong > 1.2 * right


def test_a_step_that_gemini_passes_over_leaves_its_gradients_to_the_next(undone: Any, lines: Any) -> None:
    root, _ = undone  # too many steps in a row may end either run
    right, wrong = (lines(root / name) for name in ("discard", "discard-undone"))
    skipped = next(i for i, line in enumerate(right) if not line["applied"])
    assert [line["gradient_norm"] for line in wrong[: skipped + 1]] == [
        line["gradient_norm"] for line in right[: skipped + 1]
    ]
    assert wrong[skipped + 1]["gradient_norm"] > 1.5 * right[skipped + 1]["gradient_norm"]


def test_lowered_buffers_turn_positions(undone: Any, lines: Any) -> None:
    root, results = undone
    assert results["buffers"] is results["buffers-undone"] is None
    assert lines(root / "buffers")[0]["loss"] != lines(root / "buffers-undone")[0]["loss"]


def test_tied_embeddings_that_are_frozen_are_not_added_up(undone: Any) -> None:
    _, results = undone
    assert results["shared_parameters"] is None
    assert "NoneType" in str(results["shared_parameters-undone"])


def test_zeros_own_norm_waits_for_a_pipeline_stage_with_nothing_to_train(undone: Any, lines: Any) -> None:
    root, results = undone
    assert results["own_norm"] is None
    assert len(lines(root / "own_norm")) == 4
    assert "imed out" in str(results["own_norm-undone"])


def test_sequence_parallelism_ring_computes_another_loss(undone: Any, lines: Any) -> None:
    root, results = undone
    assert results["ring"] is results["ring-undone"] is None
    right, wrong = (lines(root / name)[-1]["loss"] for name in ("ring", "ring-undone"))
    assert abs(wrong - right) > 1e-3  # fp32, in which plugins that are right differ by less than 1e-5


@pytest.fixture(scope="session")
def norms(fork: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The gradient norms that ColossalAI's plugins tell without llmforge, divided by the right one."""
    file = tmp_path_factory.mktemp("norms") / "norms.json"
    fork("theirs.py", file)
    return dict(json.loads(file.read_text()))


def test_a_norm_is_not_there_or_multiplied_by_the_loss_scale(norms: dict[str, Any]) -> None:
    assert norms["zero"] == pytest.approx(1, abs=0.01)
    assert norms["zero fp16"] == pytest.approx(8, rel=0.01)  # its loss scale
    assert "not implemented" in norms["torch_ddp"]


def test_gemini_with_tensor_parallelism_computes_wrong_gradients(norms: dict[str, Any]) -> None:
    assert norms["gemini"] == pytest.approx(1, abs=0.01)
    assert norms["gemini tp 2"] > 2


NEEDED = {
    "import_optimizers": "import galore_torch, bitsandbytes",
    "provide_hccl": "import torch; torch.distributed.Backend.HCCL; torch.distributed.is_hccl_available",
}


def test_a_newer_torch_and_missing_packages_need_each_stand_in(run_program: Any) -> None:
    """Where the packages are there, or torch has the names, there is nothing to stand in for."""
    program = (
        "from llmforge.backends.colossalai import compat\n{undo}\ncompat.install()\n"
        "from colossalai.booster.plugin import HybridParallelPlugin\nimport torch\n"
        "torch.distributed.Backend.HCCL, torch.distributed.is_hccl_available()"
    )
    assert run_program(program.format(undo=""))[0] == 0
    needed = [name for name, there in NEEDED.items() if run_program(there)[0]]
    if not needed:
        pytest.skip("this environment has what they stand in for")
    for name in needed:
        assert run_program(program.format(undo=f"compat.{name} = lambda: None"))[0] == 1, name
