"""What the stage loop offers beside plain steps, with plugins that do it in different ways."""

import json
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import ENVIRONMENT

pytest.importorskip("colossalai")

PIPELINE = {"plugin": "3d", "pp": 2, "micro_batch_size": 4}
TENSOR = {"plugin": "3d", "tp": 2, "micro_batch_size": 4}
RECOMPUTED = {"zero2": {"plugin": "zero2"}, "gemini": {"plugin": "gemini"}, "pipeline": PIPELINE}
HALF = {"zero2": {"plugin": "zero2"}, "gemini": {"plugin": "gemini"}, "tensor": TENSOR}
MEASURED = {
    "auto": {"plugin": "gemini_auto"},
    "zero2": {"plugin": "zero2"},
    "pipeline": PIPELINE,
    "tensor": TENSOR,
}
SKIPPING = {"zero1": {"plugin": "zero1"}, "gemini": {"plugin": "gemini"}, "pipeline": PIPELINE}
LORA = {"plugin": "zero2", "trainable": "lora", "lora_rank": 4, "max_steps": 4, "save_interval": 2}
ROWS, ROWS_PER_STEP = 42, 4  # where steps are judged


@pytest.fixture(scope="session")
def features(
    start: Any,
    case: Any,
    stop_after: Any,
    lines: Any,
    make_dataset: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Any]:
    """The directory of all trainings, and what each raised."""
    root = tmp_path_factory.mktemp("features")
    holdout = [make_dataset(rows=6, seed=5)]
    cases = [case("lora", root / "lora", **LORA)]
    seconds = [case("resumed", root / "resumed", load_checkpoint="latest", **LORA)]
    for name, flags in RECOMPUTED.items():
        cases.append(case(f"kept-{name}", root / f"kept-{name}", max_steps=3, **flags))
        recomputed = {"gradient_checkpointing": True, "max_steps": 3, **flags}
        cases.append(case(f"recomputed-{name}", root / f"recomputed-{name}", **recomputed))
    for name, flags in HALF.items():
        cases.append(
            case(f"half-{name}", root / f"half-{name}", max_steps=3, **{**flags, "mixed_precision": "fp16"})
        )
    for name, flags in MEASURED.items():
        measured = {"eval_data": holdout, "eval_interval": 2, "max_steps": 4, **flags}
        cases.append(case(f"measured-{name}", root / f"measured-{name}", **measured))
    for name, flags in SKIPPING.items():
        # Nothing is a jump but what is above 0 standard deviations once twenty steps are known.
        rows = {"micro_batch_size": 2, "gradient_accumulation_steps": 2 if "pp" in flags else 1}
        judged = {**flags, **rows, "spike_threshold": 0.0}
        skipping, returned = ({**judged, "on_spike": policy} for policy in ("skip", "rollback"))
        cases.append(case(f"skipping-{name}", root / f"skipping-{name}", num_epochs=3, **skipping))
        returned |= {"save_interval": 6, "max_steps": 26, "num_epochs": 9}
        cases.append(case(f"returned-{name}", root / f"returned-{name}", **returned))
        # From the checkpoint to which it went back, at the rows where it went on.
        again = {**returned, "load_checkpoint": "latest", "verify": False}
        seconds.append(case(f"again-{name}", root / f"again-{name}", **again))
    results = start(2, cases)
    stop_after(root / "lora", root / "resumed", "epoch-0_step-2")
    for name in SKIPPING:
        stop_before_going_on(root / f"returned-{name}", root / f"again-{name}", lines, stop_after)
    return root, results | start(2, seconds)


def stop_before_going_on(whole: Path, save_dir: Path, lines: Any, stop_after: Any) -> None:
    """Leaves in `save_dir` what a run would have left that stopped right after the last rollback of `whole`."""
    found = lines(whole)
    last = max(i for i in range(1, len(found)) if rows_before(found[i]) != rows_done(found[i - 1]))
    checkpoint, rows = found[last - 1], rows_before(found[last])
    name = f"epoch-{checkpoint['epoch']}_step-{checkpoint['step']}"
    stop_after(whole, save_dir, name)
    states = save_dir / name / "running_states.json"
    size, raw = states.stat().st_size, json.loads(states.read_text())
    raw["position"] |= {"epoch": rows // ROWS, "sample": rows % ROWS}
    del raw["sampler"]  # without it the sampler begins at `position`
    states.write_text(json.dumps(raw).ljust(size))  # --no-verify compares sizes


def rows_done(line: dict[str, Any]) -> int:
    """The rows that were passed, of all epochs, when the line was written."""
    return int(line["epoch"] * ROWS + line["sample"])


def rows_before(line: dict[str, Any]) -> int:
    return rows_done(line) - (ROWS_PER_STEP if line["sample"] else ROWS % ROWS_PER_STEP)


def test_adapters_are_trained_merged_and_resumed(features: Any, models: dict[bool, Path], lines: Any) -> None:
    from llmforge.backends.common.storage import read_weights

    root, results = features
    assert results["lora"] is results["resumed"] is None
    before, after, resumed = (
        read_weights(path)
        for path in (models[False], root / "lora" / "modeling", root / "resumed" / "modeling")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name}
    assert all(torch.equal(resumed[name], after[name]) for name in after)
    assert [line["loss"] for line in lines(root / "resumed")] == [
        line["loss"] for line in lines(root / "lora")
    ]


@pytest.mark.parametrize("name", RECOMPUTED)
def test_recomputed_activations_give_the_same_curve(name: str, features: Any, lines: Any) -> None:
    root, results = features
    assert results[f"kept-{name}"] is results[f"recomputed-{name}"] is None
    for key in ("loss", "gradient_norm"):
        kept, recomputed = (
            [line[key] for line in lines(root / f"{way}-{name}")] for way in ("kept", "recomputed")
        )
        assert recomputed == pytest.approx(kept, abs=1e-4)


@pytest.mark.parametrize("name", HALF)
def test_fp16_trains_with_a_loss_scale_of_ours(name: str, features: Any, lines: Any) -> None:
    root, results = features
    assert results[f"half-{name}"] is None
    reference = lines(root / "kept-zero2")
    for line, expected in zip(lines(root / f"half-{name}"), reference, strict=True):
        assert line["applied"]
        assert line["loss"] == pytest.approx(expected["loss"], abs=0.05)
        assert line["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=0.05)


@pytest.mark.parametrize("name", MEASURED)
def test_a_holdout_is_measured_before_the_first_step_and_between(
    name: str, features: Any, lines: Any
) -> None:
    root, results = features
    assert results[f"measured-{name}"] is None
    found = {
        line["step"]: line["holdout_bits_per_byte"]["all"]
        for line in lines(root / f"measured-{name}")
        if "holdout_bits_per_byte" in line
    }
    reference = {
        line["step"]: line["holdout_bits_per_byte"]["all"]
        for line in lines(root / "measured-zero2")
        if "holdout_bits_per_byte" in line
    }
    assert sorted(found) == [0, 2, 4]
    assert found == pytest.approx(reference, abs=0.01)
    losses = [line["loss"] for line in lines(root / f"measured-{name}") if "loss" in line]
    expected = [line["loss"] for line in lines(root / "measured-zero2") if "loss" in line]
    assert losses == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("name", SKIPPING)
def test_a_step_that_jumps_is_passed_over(name: str, features: Any, lines: Any) -> None:
    root, results = features
    assert (
        results[f"skipping-{name}"] is None or "consecutive steps were skipped" in results[f"skipping-{name}"]
    )
    found = lines(root / f"skipping-{name}")
    skipped = [i for i, line in enumerate(found) if not line["applied"]]
    assert skipped
    assert skipped[0] >= 20
    # What a skipped step leaves behind would show in the norm of the next.
    norms = [line["gradient_norm"] for line in found]
    assert all(norms[i + 1] < 1.9 * norms[i] for i in skipped if i + 1 < len(norms))


@pytest.mark.parametrize("name", SKIPPING)
def test_a_jump_goes_back_to_the_checkpoint(name: str, features: Any, lines: Any) -> None:
    root, results = features
    whole, again = root / f"returned-{name}", root / f"again-{name}"
    assert results[whole.name] is results[again.name] is None
    metrics = json.loads((whole / "llmforge.json").read_text())["metrics"]
    assert metrics["rollbacks"] > 0
    assert metrics["steps"] == 26
    expected = lines(whole)
    passed_over = [rows_before(line) - rows_done(past) for past, line in pairwise(expected)]
    assert max(passed_over) > ROWS_PER_STEP  # weights had changed since the checkpoint
    # Going on after a rollback is going on from the checkpoint, to the bit: weights, moments, and all else.
    for key in ("step", "epoch", "sample", "loss", "gradient_norm", "new_row_norm", "applied"):
        assert [line[key] for line in lines(again)] == [line[key] for line in expected], key


def test_sigterm_to_one_rank_saves_and_ends_all(ranks: Any, case: Any, tmp_path: Path) -> None:
    flags = case("term", tmp_path / "s", plugin="zero2", num_epochs=2000)
    words: list[str] = []
    for key, value in flags.items():
        if key == "name" or value is False:
            continue
        words += (
            [f"--{key}"]
            if value is True
            else [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
        )
    common = {**ENVIRONMENT, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    both = [
        ranks.start(["train", *words], {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    metrics, deadline = tmp_path / "s" / "metrics.jsonl", time.monotonic() + 200
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
        assert all(process.poll() is None for process in both), both[0].communicate()[1]
        time.sleep(0.2)
    both[1].send_signal(signal.SIGTERM)
    messages = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], messages
    assert "rehearsing --plugin zero2 on the CPU" in messages[0]
    steps = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert list((tmp_path / "s").glob(f"epoch-*_step-{steps}/llmforge.json"))


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
