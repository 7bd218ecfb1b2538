"""The model that a training started from may be cut, changed or unmounted while ColossalAI's plugins train."""

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("colossalai")

PLUGINS: dict[str, dict[str, Any]] = {
    "torch_ddp": {"plugin": "torch_ddp", "mixed_precision": "fp32", "trainable": "embeddings"},
    "zero2": {"plugin": "zero2", "trainable": "embeddings"},
    "gemini": {"plugin": "gemini", "trainable": "embeddings"},
    "3d": {
        "plugin": "3d",
        "tp": 2,
        "micro_batch_size": 4,
        "mixed_precision": "fp32",
        "trainable": "embeddings",
    },
    "lora": {"plugin": "zero2", "trainable": "lora", "lora_rank": 4},
}


def test_the_source_model_may_go_away_after_the_start(
    start: Any, case: Any, models: dict[bool, Path], tmp_path: Path
) -> None:
    cases = []
    for name, flags in PLUGINS.items():
        for kind in ("kept", "lost"):
            source = tmp_path / f"{name}-{kind}" / "source"
            shutil.copytree(models[False], source)
            made = case(f"{name}-{kind}", source.with_name("run"), max_steps=3, **flags)
            made |= {"model": source, "save_interval": 1}
            cases.append(made | ({"with": "lost_source"} if kind == "lost" else {}))
    results = start(2, cases)
    assert not any(results.values()), results
    for name in PLUGINS:
        kept, lost = (tmp_path / f"{name}-{kind}" for kind in ("kept", "lost"))
        assert kept.joinpath("source").exists()
        assert not lost.joinpath("source").exists()
        for step in ("epoch-0_step-1", "epoch-0_step-3"):
            made = [d / "run" / step / "modeling" / "model.safetensors" for d in (kept, lost)]
            assert made[0].read_bytes() == made[1].read_bytes(), f"{name} {step}"
