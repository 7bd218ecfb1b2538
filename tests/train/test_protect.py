"""`--protect-source`: the columns that matter to the source's text are frozen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmforge.errors import UserError
from llmforge.train.retention import RetentionOptions

from .test_retention import TABLE, Train, again, batches, engine_of, same, weights


def by_hand(model: Path, data: Path, share: float) -> dict[str, list[int]]:
    """The columns that the paper freezes: documents one by one through transformers' own model."""
    from transformers import LlamaForCausalLM

    from llmforge.dataset.packed import PackedDataset

    causal, seen = LlamaForCausalLM.from_pretrained(model, attn_implementation="eager"), {}
    layers = {n: m for n, m in causal.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    for name, layer in layers.items():
        layer.register_forward_hook(
            lambda _, inputs, __, name=name: seen.setdefault(name, []).append(inputs[0][0])
        )
    prepared = PackedDataset([data])
    for row in prepared.rows(range(len(prepared))):
        begin = 0
        for length in row.seq_lengths:
            causal(torch.tensor(row.input_ids[begin : begin + length].astype("int64"))[None])
            begin += length
    found = {}
    for name, layer in layers.items():
        importance = layer.weight.detach().abs() * torch.cat(seen[name]).norm(dim=0)
        score = importance.sum(dim=0)
        found[f"{name}.weight"] = sorted(score.topk(round(share * len(score))).indices.tolist())
    return found


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_columns_that_matter_to_the_source_keep_their_bits(
    optimizer: str, train: Train, make_dataset: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    text = make_dataset(rows=9, seed=7)
    retention = RetentionOptions(protect_source=[text], protect_share=0.25, l2_to_start=1.0)
    flags: dict[str, Any] = {
        "optimizer": optimizer,
        "retention": retention,
        "max_steps": 4,
        "save_interval": 2,
        "trainable": "embeddings,1-",
    }
    train(**flags, output=tmp_path / "whole")
    expected = by_hand(tiny_model, text, 0.25)
    start, end = load_file(tiny_model / "model.safetensors"), weights(tmp_path / "whole")
    for name, columns in expected.items():
        moved = (start[name] != end[name]).any(dim=0)
        trained = ".layers.0." not in name
        assert moved.sum() == (len(moved) - len(columns) if trained else 0), name
        assert not moved[columns].any(), name
    assert not torch.equal(start[TABLE], end[TABLE])
    again(tmp_path / "whole", tmp_path / "again", "epoch-0_step-2")
    train(**flags, output=tmp_path / "again", load_checkpoint="latest")
    assert same(weights(tmp_path / "again"), end)


def test_training_with_frozen_columns_is_that_of_a_plain_loop(tiny_model: Path) -> None:
    """Without weight decay of the matrices, also in the norm by which gradients are clipped."""
    from transformers import LlamaForCausalLM

    engine = engine_of(tiny_model, protect=0.5, calibration=batches(2), clip=0.05)
    model = LlamaForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")
    table = [model.model.embed_tokens.weight]
    others = [p for name, p in model.named_parameters() if name != TABLE]
    plain = torch.optim.AdamW(
        [{"params": table, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    for rate, batch in zip((1e-2, 2e-2, 1e-2), batches(3), strict=True):
        result = engine.train_step([batch], rate, lambda loss, norm: True)
        logits = model(batch.input_ids).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).backward()
        for name, kept in engine.shield.kept.items():
            assert int((kept == 0).sum()) == len(kept) // 2
            model.get_parameter(name).grad[:, kept == 0] = 0
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        assert result.gradient_norm == pytest.approx(float(norm), rel=1e-4)
        for group in plain.param_groups:
            group["lr"] = rate
        plain.step()
        plain.zero_grad()
    expected = dict(model.named_parameters())
    for name, parameter in engine.causal.named_parameters():
        torch.testing.assert_close(parameter, expected[name], atol=3e-4, rtol=0, msg=name)


def test_what_cannot_be_protected_is_refused(
    train: Train, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_dataset(rows=4, tokenizer_fingerprint="another")
    with pytest.raises(UserError, match=r"--protect-source .* was prepared with another tokenizer"):
        train(retention=RetentionOptions(protect_source=[other]))
    with pytest.raises(UserError, match=r"--protect-source .*nowhere is not a directory"):
        train(retention=RetentionOptions(protect_source=[tmp_path / "nowhere"]))
    text = make_dataset(rows=4)
    train(max_steps=2, save_interval=1)
    (tmp_path / "run" / "llmforge.json").unlink()
    with pytest.raises(
        UserError, match=r"was trained with nothing frozen for --protect-source, and now it is 0.5"
    ):
        train(max_steps=2, retention=RetentionOptions(protect_source=[text]), load_checkpoint="latest")
