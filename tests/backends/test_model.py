"""Loading a causal model for training."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from llmforge.backends.build import say_routers
from llmforge.backends.common.attention import SDPA
from llmforge.backends.common.model import load_model
from llmforge.errors import UserError
from llmforge.weights.architecture import check_length
from llmforge.weights.directory import ModelDirectory


def test_the_token_that_a_model_pads_with_learns_like_others(tiny_model: Path) -> None:
    assert json.loads((tiny_model / "config.json").read_text())["pad_token_id"] == 0
    embeddings = load_model(ModelDirectory(tiny_model), SDPA).get_input_embeddings()
    embeddings(torch.tensor([0])).sum().backward()
    assert bool((embeddings.weight.grad[0] == 1).all())


def test_weights_that_do_not_fit_their_configuration_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    about = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**about, "vocab_size": 448}))
    with pytest.raises(UserError, match=r"model.embed_tokens.weight has the shape \(320, 64\).*\(448, 64\)"):
        load_model(ModelDirectory(model), SDPA)


def test_a_model_that_lacks_a_tensor_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    tensors = load_file(model / "model.safetensors")
    lost = next(name for name in tensors if name.endswith("up_proj.weight"))
    del tensors[lost]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"lacks 1 tensors of its model \(the first is {lost}\)"):
        load_model(ModelDirectory(model), SDPA)


def test_a_truncated_model_is_named(tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model.safetensors is damaged .*copy or download it again"):
        load_model(ModelDirectory(model), SDPA)


def test_models_with_other_parts_are_refused_with_what_is_supported(tiny_model: Path, tmp_path: Path) -> None:
    about = json.loads((tiny_model / "config.json").read_text())
    for changes, said in (
        ({"model_type": "bert"}, "a bert model is not a decoder-only model"),
        (
            {"model_type": "gemma3", "vision_config": {"a": 1}},
            r"other parts than its text model \(vision_config\)",
        ),
        ({"is_encoder_decoder": True}, "is not a decoder-only model"),
        ({"model_type": "falcon", "alibi": True}, "adds ALiBi of Falcon twice"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**about, **changes}))
        with pytest.raises(UserError, match=f"{said}.*supported are LLaMA"):
            load_model(ModelDirectory(tmp_path), SDPA)


def test_rows_longer_than_the_positions_of_a_model_are_refused(tmp_path: Path) -> None:
    from transformers import AutoConfig

    check_length(AutoConfig.for_model("gpt2", n_positions=64), tmp_path, 64)
    check_length(AutoConfig.for_model("bloom"), tmp_path, 10**6)
    check_length(AutoConfig.for_model("llama", max_position_embeddings=64), tmp_path, 128)
    scaled = {"rope_type": "dynamic", "factor": 2.0}
    for config, said in (
        (
            AutoConfig.for_model("gpt2", n_positions=64),
            "positions for 64; prepare the data with --max-length 64",
        ),
        (AutoConfig.for_model("opt", max_position_embeddings=64), "positions for 64"),
        (AutoConfig.for_model("gptj", n_positions=64), "positions for 64"),
        (
            AutoConfig.for_model("llama", max_position_embeddings=64, rope_scaling=scaled),
            "from 64 on the dynamic positions .* --max-length 64",
        ),
    ):
        with pytest.raises(UserError, match=said):
            check_length(config, tmp_path, 65)


def test_checkpoints_hold_experts_as_other_readers_have_them(tmp_path: Path) -> None:
    """transformers 5 has the experts of a layer in one tensor; files hold each by itself."""
    from safetensors.torch import load_file
    from transformers import MixtralConfig, MixtralForCausalLM

    from llmforge.backends.common import storage
    from llmforge.backends.common.settings import Settings
    from llmforge.backends.common.sharded_weights import rewrite_as_in_files
    from llmforge.backends.common.trainable import parse
    from llmforge.backends.torch.engine import NativeEngine

    sizes = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "head_dim": 8,
    }
    MixtralForCausalLM(
        MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, num_local_experts=3)
    ).save_pretrained(tmp_path / "model")
    settings = Settings(
        ModelDirectory(tmp_path / "model"), "fp32", parse("all"), old_rows=32, rows=32, groups=1, seed=0
    )
    engine = NativeEngine(settings)
    (tmp_path / "saved").mkdir()
    engine.snapshot().write_model(tmp_path / "saved")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "saved"))
    assert any(".experts.2." in name for name in before)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    (tmp_path / "shared").mkdir()  # as ranks that share a model write it
    storage.write_weights(storage.unique_state(engine.causal), tmp_path / "shared")
    assert not any(".experts.2." in name for name in load_file(tmp_path / "shared" / "model.safetensors"))
    rewrite_as_in_files(engine.causal, tmp_path / "shared")
    shared = load_file(tmp_path / "shared" / "model.safetensors")
    assert before.keys() == shared.keys()
    assert all(torch.equal(before[name], shared[name]) for name in before)
    assert [file.name for file in (tmp_path / "shared").iterdir()] == ["model.safetensors"]
    with torch.no_grad():
        for parameter in engine.causal.parameters():
            parameter.zero_()
    shutil.copyfile(tmp_path / "model" / "config.json", tmp_path / "saved" / "config.json")
    engine.load_weights(tmp_path / "saved")  # as a rollback does
    (tmp_path / "again").mkdir()
    engine.snapshot().write_model(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(before[name], again[name]) for name in before)


def test_adapters_for_a_model_without_linear_layers_are_refused() -> None:
    pytest.importorskip("peft")
    from transformers import GPT2Config, GPT2LMHeadModel

    from llmforge.backends.common.lora import Lora
    from llmforge.backends.common.settings import Adapters

    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(UserError, match="a gpt2 model has none"):
        Lora(model, Adapters(2), 0)


def test_experts_that_no_adapter_reaches_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    """transformers 5 has the experts of a layer in one tensor, which is no linear layer."""
    pytest.importorskip("peft")
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    from llmforge.backends.common.lora import Lora
    from llmforge.backends.common.settings import Adapters

    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    mixtral = MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=4))
    for model in (LlamaForCausalLM(LlamaConfig(**sizes)), mixtral):
        model.requires_grad_(False)
        lora = Lora(model, Adapters(2), 0)
        lora.say_unreached()
        assert ("stay unchanged; name layers" in capsys.readouterr().err) == (model is mixtral)
        assert any("experts" in name for name in lora.unreached) == (model is mixtral)


def test_a_loss_of_routers_that_is_not_taken_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import MixtralConfig

    say_routers(MixtralConfig(output_router_logits=False), Path("m"))
    assert capsys.readouterr().err == ""
    say_routers(MixtralConfig(output_router_logits=True), Path("m"))
    assert "output_router_logits" in capsys.readouterr().err
