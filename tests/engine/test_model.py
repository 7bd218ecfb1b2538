"""Loading a causal model for training."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from llmforge.engine.model import load_model
from llmforge.errors import UserError


def test_the_token_that_a_model_pads_with_learns_like_others(tiny_model: Path) -> None:
    assert json.loads((tiny_model / "config.json").read_text())["pad_token_id"] == 0
    embeddings = load_model(tiny_model, "llmforge_sdpa").get_input_embeddings()
    embeddings(torch.tensor([0])).sum().backward()
    assert bool((embeddings.weight.grad[0] == 1).all())


def test_weights_that_do_not_fit_their_configuration_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    about = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**about, "vocab_size": 448}))
    with pytest.raises(UserError, match=r"model.embed_tokens.weight has the shape \(320, 64\).*\(448, 64\)"):
        load_model(model, "llmforge_sdpa")


def test_a_model_that_lacks_a_tensor_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    tensors = load_file(model / "model.safetensors")
    lost = next(name for name in tensors if name.endswith("up_proj.weight"))
    del tensors[lost]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"lacks 1 tensors of its model \(the first is {lost}\)"):
        load_model(model, "llmforge_sdpa")


def test_a_truncated_model_is_named(tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model.safetensors is damaged .*copy or download it again"):
        load_model(model, "llmforge_sdpa")
