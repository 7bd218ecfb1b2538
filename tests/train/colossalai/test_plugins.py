"""Every plugin through the same tests: the curve of the native engine, freezing, resuming, and what it writes."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import FOUR, NATIVE, TWO

pytest.importorskip("colossalai")

Start = Callable[..., dict[str, str | None]]
Runs = Callable[[str], tuple[Path, dict[str, str | None]]]
TIMINGS = ("seconds", "tokens_per_second", "bytes_per_second", "model_flops_per_second", "peak_memory_bytes")
EVERY = [*TWO, *FOUR]


def suite(
    group: dict[str, dict[str, Any]], root: Path, case: Any, stop_after: Any
) -> list[list[dict[str, Any]]]:
    """Two lists of cases: whole and partly frozen trainings, then those that go on from the first's checkpoints."""
    first, second = [], []
    for name, flags in group.items():
        first.append(case(f"{name}/whole", root / name / "whole", **flags))
        frozen = {**flags, "max_steps": 3}
        first.append(case(f"{name}/new", root / name / "new", trainable="new-embeddings", **frozen))
        first.append(case(f"{name}/layer", root / name / "layer", trainable="1", **frozen))
        second.append(case(f"{name}/resumed", root / name / "resumed", load_checkpoint="latest", **flags))
    return [first, second]


@pytest.fixture(scope="session")
def runs(start: Start, case: Any, stop_after: Any, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """`runs(name)` is the directory of a plugin's trainings and what each raised; its group runs on first use."""
    root = tmp_path_factory.mktemp("plugins")

    @cache
    def run(processes: int) -> dict[str, str | None]:
        group = {2: TWO, 4: FOUR}[processes]
        first, second = suite(group, root, case, stop_after)
        if group is TWO:
            first += [case(name, root / name / "whole", **flags) for name, flags in NATIVE.items()]
        results = start(processes, first)
        stopped = [name for name in group if results[f"{name}/whole"] is None]
        for name in stopped:
            stop_after(root / name / "whole", root / name / "resumed", "epoch-0_step-3")
        return results | start(
            processes, [c for c in second if c["name"].removesuffix("/resumed") in stopped]
        )

    return lambda name: (root / name, run(4 if name in FOUR else 2))


def flags_of(name: str) -> dict[str, Any]:
    return {**TWO, **FOUR}[name]


def read(model: Path) -> dict[str, torch.Tensor]:
    from llmforge.backends.common.storage import read_weights

    return read_weights(model)


def curve(lines: Any, save_dir: Path, key: str) -> list[float]:
    return [line[key] for line in lines(save_dir)]


@pytest.mark.parametrize("name", EVERY)
def test_a_plugin_follows_the_native_engine(name: str, runs: Runs, lines: Any) -> None:
    root, results = runs(name)
    assert results[f"{name}/whole"] is None
    exact = flags_of(name).get("mixed_precision") == "fp32"
    reference = "native-tied" if flags_of(name).get("tied") else "native-untied"
    expected, found = runs(reference)[0] / "whole", root / "whole"
    for key, tolerance in (("loss", 1e-5 if exact else 0.02), ("gradient_norm", 1e-4 if exact else 0.05)):
        assert curve(lines, found, key) == pytest.approx(curve(lines, expected, key), abs=tolerance)
    # The last step is short: 2 rows of 8.
    assert curve(lines, found, "tokens") == curve(lines, expected, "tokens")
    for new, old in zip(lines(found), lines(expected), strict=True):
        for key in ("loss_by_category", "loss_by_token"):
            # A group is a few tokens: less evens out.
            assert new[key] == pytest.approx(old[key], abs=1e-4 if exact else 0.05)
        assert new["new_row_norm"] == pytest.approx(old["new_row_norm"], abs=1e-4 if exact else 0.02)


@pytest.mark.parametrize("name", EVERY)
def test_resuming_gives_the_same_bits(name: str, runs: Runs, lines: Any) -> None:
    root, results = runs(name)
    assert results.get(f"{name}/resumed", "it was not started") is None
    whole, resumed = root / "whole", root / "resumed"
    assert [strip(line) for line in lines(resumed)] == [strip(line) for line in lines(whole)]
    expected = read(whole / "modeling")
    found = read(resumed / "modeling")
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def strip(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in TIMINGS}


@pytest.mark.parametrize("name", EVERY)
def test_what_is_not_trained_keeps_its_bits(name: str, runs: Runs, models: dict[bool, Path]) -> None:
    root, results = runs(name)
    assert results[f"{name}/new"] is results[f"{name}/layer"] is None
    before = read(models[flags_of(name).get("tied", False)])
    after = read(root / "new" / "modeling")
    assert after.keys() == before.keys()
    for key in before:
        changed = (after[key] != before[key]).reshape(len(before[key]), -1).any(dim=1)
        is_embedding = key in ("model.embed_tokens.weight", "lm_head.weight")
        assert bool(changed[300:330].any()) == is_embedding, key
        assert not changed[:300].any(), key
        assert not changed[330:].any(), key
    after = read(root / "layer" / "modeling")
    changed = {key for key in before if not torch.equal(after[key], before[key])}
    assert changed == {key for key in before if ".layers.1." in key}


@pytest.mark.parametrize("name", EVERY)
def test_transformers_reads_what_is_written(name: str, runs: Runs) -> None:
    from transformers import AutoModelForCausalLM

    root, _ = runs(name)
    model, about = AutoModelForCausalLM.from_pretrained(root / "whole" / "modeling", output_loading_info=True)
    assert not any(about[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    ids = torch.randint(0, 330, (1, 16), generator=torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(model(ids).logits).all())


def test_a_checkpoint_is_exported(runs: Runs, llmforge: Any, tmp_path: Path) -> None:
    root, _ = runs("zero2")
    llmforge("export", "--checkpoint", root / "whole" / "epoch-0_step-3", "--output-dir", tmp_path / "out")
    assert read(tmp_path / "out")["model.embed_tokens.weight"].shape[0] == 330


def test_native_goes_on_from_the_weights_but_not_from_the_state(
    runs: Runs, llmforge: Any, models: dict[bool, Path], tiny_data: Path, tmp_path: Path
) -> None:
    root, _ = runs("gemini")
    checkpoint = root / "whole" / "epoch-0_step-3"
    words = (
        "--pretrained",
        models[False],
        "--dataset",
        tiny_data,
        "--max-steps",
        1,
        "--mixed-precision",
        "fp32",
    )
    refused = llmforge("train", *words, "--save-dir", tmp_path / "a", "--load-checkpoint", checkpoint, code=1)
    assert "was written by --plugin gemini on 2 processes" in refused.stderr
    assert str(checkpoint / "modeling") in refused.stderr
    llmforge("train", *words, "--save-dir", tmp_path / "b", "--load-checkpoint", checkpoint / "modeling")


def test_colossal_goes_on_from_native_weights_but_not_from_its_state(
    runs: Runs, start: Start, case: Any, tmp_path: Path
) -> None:
    checkpoint = runs("native-untied")[0] / "whole" / "epoch-0_step-3"
    flags = {"plugin": "zero2", "max_steps": 1}
    cases = [
        case("state", tmp_path / "a", load_checkpoint=str(checkpoint), **flags),
        case("weights", tmp_path / "b", load_checkpoint=str(checkpoint / "modeling"), **flags),
    ]
    results = start(2, cases)
    assert "was written by --plugin ddp" in str(results["state"])
    assert results["weights"] is None
