"""LoRA with dropout, DoRA, and new rows beside adapters: exact, resumable, and what peft makes of the adapter."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llmforge.errors import UsageError, UserError
from llmforge.steps import read_manifest
from llmforge.weights.adapter import export_adapter
from llmforge.weights.options import FormatOptions

from .conftest import OLD_ROWS, PADDED, ROWS
from .test_features import lines, losses

pytest.importorskip("peft")
Train = Callable[..., Any]
LORA = {"trainable": "lora", "lora_rank": 4}
BOTH = {**LORA, "trainable": "lora,new-embeddings"}
TABLE = "model.embed_tokens.weight"


def files(run: Path) -> dict[str, bytes]:
    """All that a run leaves of weights and adapter, its manifests' times aside."""
    return {
        file.relative_to(run).as_posix(): file.read_bytes()
        for folder in ("modeling", "adapter")
        for file in (run / folder).iterdir()
        if file.name != "llmforge.json"
    }


def test_dropout_norms_and_new_rows_resume_to_the_same_bits(
    train: Train, tiny_model: Path, tmp_path: Path
) -> None:
    words = {**BOTH, "lora_dropout": 0.3, "dora": True, "max_steps": 8, "save_interval": 3}
    train(**words, output=tmp_path / "whole")
    (tmp_path / "again").mkdir()
    shutil.copytree(tmp_path / "whole" / "epoch-0_step-3", tmp_path / "again" / "epoch-0_step-3")
    shutil.copy(tmp_path / "whole" / "run.json", tmp_path / "again" / "run.json")
    train(**words, output=tmp_path / "again", load_checkpoint="latest")
    assert files(tmp_path / "whole") == files(tmp_path / "again")
    assert losses(tmp_path / "whole")[3:] == losses(tmp_path / "again")

    before, after = (
        load_file(path / "model.safetensors") for path in (tiny_model, tmp_path / "whole/modeling")
    )
    moved = (before[TABLE] != after[TABLE]).any(dim=1)
    assert moved[OLD_ROWS:ROWS].any()
    assert not moved[:OLD_ROWS].any()
    assert not moved[ROWS:].any()
    assert len(moved) == PADDED
    assert sum(bool((before[name] != after[name]).any()) for name in before) == 1 + 3 * 7


def test_dropout_is_of_training_alone_and_the_same_each_time(
    train: Train, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    held = {"eval_data": [make_dataset(rows=6, seed=5)], "eval_interval": 2}
    for name, more in (("none", {}), ("a", {"lora_dropout": 0.5}), ("b", {"lora_dropout": 0.5})):
        train(**LORA, **more, **held, max_steps=2, output=tmp_path / name)
    train(**held, model=tmp_path / "a" / "modeling", max_steps=1, output=tmp_path / "merged")
    none, first, second, merged = (lines(tmp_path / name) for name in ("none", "a", "b", "merged"))

    def trained(found: list[dict[str, Any]]) -> list[float]:
        return [line["loss"] for line in found if "loss" in line]

    def evaluated(found: list[dict[str, Any]]) -> list[float]:
        name = "holdout_bits_per_byte"
        return [line[name]["all"] for line in found if name in line]

    assert trained(first) == trained(second)
    # The second of two adapters begins as zero, so dropout shows from the second step on.
    assert trained(first)[0] == trained(none)[0]
    assert trained(first)[1] != trained(none)[1]
    # An evaluation drops nothing: that of the merged weights, before their first step, is the same.
    assert evaluated(merged)[0] == pytest.approx(evaluated(first)[-1], abs=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("more", [{}, {"dora": True, "rslora": True, "lora_alpha": 3.5}])
def test_peft_loads_the_adapter_to_the_logits_of_the_merged_model(
    tied: bool, more: dict[str, Any], train: Train, make_tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = make_tiny_model(tmp_path / "base", tie_word_embeddings=tied)
    train(**BOTH, **more, model=base, max_steps=4, output=tmp_path / "run")
    done = export_adapter(tmp_path / "run", tmp_path / "adapter", FormatOptions(format="adapter"))
    assert done.manifest.outputs["base"] == str(base)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    rows = [tensor for name, tensor in tensors.items() if name.endswith("trainable_tokens_delta")]
    assert [len(tensor) for tensor in rows] == [ROWS - OLD_ROWS] * (1 if tied else 2)
    assert any("magnitude" in name for name in tensors) == ("dora" in more)

    ids = torch.arange(ROWS).reshape(10, -1)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "modeling")
    plain = AutoModelForCausalLM.from_pretrained(base)
    with torch.inference_mode():
        ours, theirs, start = (model.eval()(ids).logits for model in (merged, adapted, plain))
        folded = adapted.merge_and_unload()(ids).logits
    assert (ours - start).abs().max() > 1e-2
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours - folded).abs().max() < 1e-5


@pytest.mark.slow
def test_the_command_exports_and_verifies_an_adapter(
    train: Train, tiny_model: Path, llmforge: Any, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    train(**BOTH, dora=True, model=base, max_steps=3, output=tmp_path / "run")
    words = ("export", "--checkpoint", tmp_path / "run" / "epoch-0_step-3", "--format", "adapter")
    done = llmforge(*words, "--output", tmp_path / "out", "--verify")
    assert "an adapter of" in done.stdout
    assert "logits within" in done.stdout
    recorded = read_manifest(tmp_path / "out")
    assert recorded.metrics["verified"] < 1e-4
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "README.md",
    }
    assert "library_name: peft" in (tmp_path / "out" / "README.md").read_text()
    llmforge(*words, "--output", tmp_path / "half", "--dtype", "bfloat16")
    assert {str(t.dtype) for t in load_file(tmp_path / "half" / "adapter_model.safetensors").values()} == {
        "torch.bfloat16"
    }
    base.rename(tmp_path / "gone")
    refused = llmforge(*words, "--output", tmp_path / "other", "--verify", code=1)
    assert "is not there; give it back" in " ".join(refused.stderr.split())


def test_a_training_without_adapters_has_none_to_export(train: Train, tmp_path: Path) -> None:
    train(max_steps=1)
    with pytest.raises(UserError, match="contains no adapter"):
        export_adapter(tmp_path / "run", tmp_path / "out", FormatOptions(format="adapter"))


def test_a_rounded_adapter_is_not_verified_against_merged_weights(train: Train, tmp_path: Path) -> None:
    train(**LORA, max_steps=1)
    options = FormatOptions(format="adapter", verify=True, dtype="bfloat16")
    with pytest.raises(UsageError, match=r"--verify .* --dtype bfloat16"):
        export_adapter(tmp_path / "run", tmp_path / "out", options)


def test_adapters_resume_over_the_model_that_they_began_with(
    train: Train, make_tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    train(**LORA, max_steps=4, save_interval=2)
    (tmp_path / "run" / "llmforge.json").unlink()
    for flags, said in (({"dora": True}, "--dora False"), ({"lora_alpha": 3}, "--lora-alpha 8.0")):
        with pytest.raises(UserError, match=f"was trained with {said}, and now"):
            train(**LORA, **flags, max_steps=4, load_checkpoint="latest", allow_changes=True)
    other = make_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="another start"):
        train(**LORA, max_steps=4, save_interval=2, model=other, load_checkpoint="latest")


def test_new_rows_of_a_model_that_has_none_are_refused(
    train: Train, make_tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    plain = make_tiny_model(tmp_path / "plain")
    record = json.loads((plain / "llmforge.json").read_text())
    record["outputs"]["vocabulary"]["source"] = ROWS
    from llmforge.steps import Manifest, manifest_path, write_manifest

    write_manifest(manifest_path(plain), Manifest("init-model", {}, outputs=record["outputs"]))
    with pytest.raises(UserError, match="has no new tokens"):
        train(**BOTH, model=plain)
