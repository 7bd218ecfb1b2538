"""What a stage can train and how, each checked by what it leaves behind."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from llmforge.errors import UserError

Train = Callable[..., Any]


def lines(save_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]


def losses(save_dir: Path) -> list[float]:
    return [line["loss"] for line in lines(save_dir)]


def changed(before: Path, after: Path) -> set[str]:
    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    assert old.keys() == new.keys()
    return {name for name in old if (old[name] != new[name]).any()}


def test_layer_ranges_train_those_layers_alone(train: Train, tiny_model: Path, tmp_path: Path) -> None:
    train(trainable="embeddings,1-", max_steps=2)
    names = changed(tiny_model, tmp_path / "run" / "modeling")
    assert "model.embed_tokens.weight" in names
    assert {name.split(".")[2] for name in names if ".layers." in name} == {"1", "2"}
    assert "model.norm.weight" not in names


def test_colossal_llamas_freeze_flag_trains_embeddings(
    train: Train, tiny_model: Path, tmp_path: Path
) -> None:
    train(freeze_non_embeds_params=True, max_steps=2)
    assert changed(tiny_model, tmp_path / "run" / "modeling") == {"model.embed_tokens.weight"}


def test_lora_leaves_a_merged_model_and_resumes_to_the_same_bits(
    train: Train, tiny_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    words = {"trainable": "lora", "lora_rank": 4, "max_steps": 8, "save_interval": 3}
    train(**words, output=tmp_path / "whole")
    names = changed(tiny_model, tmp_path / "whole" / "modeling")
    assert len(names) == 3 * 7
    assert all(".layers." in name and name.endswith("proj.weight") for name in names)
    AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "modeling")
    (tmp_path / "again").mkdir()
    (tmp_path / "whole" / "epoch-0_step-3").rename(tmp_path / "again" / "epoch-0_step-3")
    (tmp_path / "again" / "run.json").write_text((tmp_path / "whole" / "run.json").read_text())
    train(**words, output=tmp_path / "again", load_checkpoint="latest")
    weights = [
        (tmp_path / name / "modeling" / "model.safetensors").read_bytes() for name in ("whole", "again")
    ]
    assert weights[0] == weights[1]
    assert losses(tmp_path / "whole")[3:] == losses(tmp_path / "again")


def test_lora_has_the_scale_and_the_layers_that_were_asked_for(
    train: Train, tiny_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    from llmforge.backends.common.settings import Adapters

    assert Adapters(4).scale == 2
    assert Adapters(4, alpha=16).scale == 4
    assert Adapters(4, alpha=16, stabilized=True).scale == 8
    words = {"trainable": "lora", "lora_rank": 4, "max_steps": 3}
    for name, more in (
        ("plain", {"lora_alpha": 8}),
        ("scaled", {"lora_alpha": 16}),
        ("rs", {"lora_alpha": 8, "rslora": True}),
        ("two", {"lora_targets": ["q_proj", "v_proj"]}),
    ):
        train(**words, **more, output=tmp_path / name)
    # alpha 16 over rank 4 is alpha 8 over the square root of 4.
    assert losses(tmp_path / "scaled") == losses(tmp_path / "rs") != losses(tmp_path / "plain")
    names = changed(tiny_model, tmp_path / "two" / "modeling")
    assert {name.split(".")[-2] for name in names} == {"q_proj", "v_proj"}
    with pytest.raises(UserError, match="no linear layer of this name; it has down_proj"):
        train(**words, lora_targets=["query"], output=tmp_path / "none")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_float32(precision: str, train: Train, tmp_path: Path) -> None:
    train(max_steps=6, output=tmp_path / "a")
    train(max_steps=6, output=tmp_path / "b", mixed_precision=precision)
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), abs=0.03)
    assert losses(tmp_path / "b") != losses(tmp_path / "a")


def test_recomputing_activations_changes_nothing(train: Train, tmp_path: Path) -> None:
    train(max_steps=4, output=tmp_path / "a")
    train(max_steps=4, output=tmp_path / "b", gradient_checkpointing=True)
    assert losses(tmp_path / "b") == losses(tmp_path / "a")


def test_attention_that_does_not_run_here_is_refused(train: Train) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine runs it")
    with pytest.raises(UserError, match="--attention flex"):
        train(attention="flex")


def test_cross_document_attention_is_another_loss(train: Train, tmp_path: Path) -> None:
    train(max_steps=1, output=tmp_path / "a")
    train(max_steps=1, output=tmp_path / "b", cross_document_attention=True)
    assert abs(losses(tmp_path / "a")[0] - losses(tmp_path / "b")[0]) > 1e-4
    # The first token of a document is predicted from the one before.
    assert lines(tmp_path / "b")[0]["tokens"] > lines(tmp_path / "a")[0]["tokens"]


def test_noise_on_embeddings_is_the_same_each_time(train: Train, tmp_path: Path) -> None:
    for name, noise in (("a", False), ("b", True), ("c", True)):
        train(max_steps=2, output=tmp_path / name, use_neft=noise)
    assert losses(tmp_path / "b") == losses(tmp_path / "c") != losses(tmp_path / "a")


@pytest.mark.slow
def test_compiled_layers_follow_plain_ones(train: Train, tmp_path: Path) -> None:
    train(max_steps=3, output=tmp_path / "a")
    train(max_steps=3, output=tmp_path / "b", compile=True)
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), abs=1e-4)


def test_modeling_starts_a_new_stage_from_its_weights(train: Train, tmp_path: Path) -> None:
    train(max_steps=3, output=tmp_path / "one")
    train(max_steps=1, output=tmp_path / "two", model=tmp_path / "one" / "modeling")
    train(max_steps=1, output=tmp_path / "three", load_checkpoint=str(tmp_path / "one" / "modeling"))
    assert losses(tmp_path / "two") == losses(tmp_path / "three")
    manifest = json.loads((tmp_path / "three" / "llmforge.json").read_text())
    assert manifest["inputs"][0]["path"].endswith("one/modeling")


def test_pickled_weights_train_to_the_same_bits(train: Train, tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file as load_tensors

    for name in ("plain", "pickled"):  # as they come from elsewhere, without a manifest
        shutil.copytree(tiny_model, tmp_path / name, ignore=shutil.ignore_patterns("llmforge.json"))
    tensors = load_tensors(tiny_model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]  # tied
    torch.save(tensors, tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    for name in ("plain", "pickled"):
        train(model=tmp_path / name, max_steps=2, output=tmp_path / f"run-{name}")
    assert not changed(tmp_path / "run-plain" / "modeling", tmp_path / "run-pickled" / "modeling")


def test_the_holdout_is_measured_in_bits_per_byte(
    train: Train, make_dataset: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    holdout = make_dataset(rows=5, parts=1)
    train(max_steps=12, learning_rate=3e-2, eval_data=[holdout], eval_interval=5)
    measured = {
        line["step"]: line["holdout_bits_per_byte"]
        for line in lines(tmp_path / "run")
        if "holdout_bits_per_byte" in line
    }
    assert list(measured) == [0, 5, 10, 12]
    assert measured[12]["all"] < measured[0]["all"]
    # By hand, document by document, with the model that training started from.
    from llmforge.dataset.packed import PackedDataset

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    nats, size = 0.0, 0
    for row in PackedDataset([holdout]).rows(range(5)):
        ends = np.cumsum(row.seq_lengths)
        size += int(row.seq_bytes.sum())
        for begin, end in zip(ends - row.seq_lengths, ends, strict=True):
            ids = torch.tensor(row.input_ids[begin:end]).long()[None]
            labels = torch.tensor(row.labels[begin:end]).long()[None]
            with torch.no_grad():
                scores = model(ids).logits[0, :-1].log_softmax(-1)
            kept = labels[0, 1:] != -100
            nats -= float(scores[kept].gather(1, ids[0, 1:][kept][:, None]).sum())
    assert measured[0]["all"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_a_step_reports_its_figures(train: Train, tmp_path: Path) -> None:
    train(max_steps=2)
    line = lines(tmp_path / "run")[0]
    for name in (
        "bytes_per_second",
        "model_flops_per_second",
        "new_row_norm",
        "new_tokens_never_seen",
        "bytes",
    ):
        assert line[name] > 0, name
    sums = [line["loss_by_token"][name] for name in ("old", "new")]
    assert min(sums) <= line["loss"] <= max(sums)


GOLDEN = {
    "all": {"schedule": "cosine"},
    "new-embeddings": {"trainable": "new-embeddings", "learning_rate": 3e-2},
    "wsd, accumulated": {"schedule": "wsd", "micro_batch_size": 1, "gradient_accumulation_steps": 3},
    "constant, across documents": {
        "schedule": "constant",
        "cross_document_attention": True,
        "weight_decay": 0.0,
    },
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_curves(name: str, train: Train, tmp_path: Path) -> None:
    """A change that keeps the meaning of a training keeps these curves (float32; other machines differ
    by 1e-4).
    """
    train(**GOLDEN[name], max_steps=8)
    file = Path(__file__).parent / "golden.json"
    golden = json.loads(file.read_text())
    assert losses(tmp_path / "run") == pytest.approx(golden[name], abs=1e-4)


def test_weights_and_biases_gets_every_step_under_one_name(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    save_dir = tmp_path / "run"
    train(max_steps=2, save_interval=2, output=save_dir, wandb_project="p")
    name = (save_dir / ".wandb-id").read_text()
    (save_dir / "llmforge.json").unlink()
    train(max_steps=4, output=save_dir, wandb_project="p", load_checkpoint="latest")
    logs = sorted(save_dir.glob("wandb/offline-run-*"))
    assert len(logs) == 2
    for log in logs:
        assert log.name.endswith(name)
        assert (log / f"run-{name}.wandb").stat().st_size > 1000
