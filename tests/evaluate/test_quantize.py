"""Weights in 8 and 4 bits: bitsandbytes reads what is written here, and transformers loads an export of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.errors import UsageError, UserError
from llmforge.weights.export import FormatOptions, export

pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module", params=["int8", "int4"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.arange(40).reshape(2, 20)).logits.float()


def loaded(model: Path, kind: str | None, dtype: str = "float32") -> Any:
    from llmforge.evaluate.models import load_model
    from llmforge.evaluate.options import MemoryOptions

    return load_model(model, dtype, memory=MemoryOptions(quantize=kind)).model  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 20), st.sampled_from([0.0, 1.0, 1e6]))
def test_rounded_numbers_are_near_and_laid_out_as_stated(
    seed: int, rows: int, blocks: int, size: float
) -> None:
    import torch
    from bitsandbytes.functional import QuantState, dequantize_4bit

    from llmforge.weights.quantization.rounding import BLOCK, layout, rounded

    matrix = size * torch.randn(rows, blocks * BLOCK, generator=torch.Generator().manual_seed(seed))
    for kind in ("int8", "int4"):
        parts = rounded(kind, matrix, "float32")  # type: ignore[arg-type]
        stated = layout(kind, *matrix.shape)  # type: ignore[arg-type]
        assert {name: tuple(part.shape) for name, part in parts.items()} == {
            name: shape for name, (_, shape) in stated.items()
        }
    state = {name.removeprefix("weight."): part for name, part in parts.items() if name != "weight"}
    read = dequantize_4bit(parts["weight"], QuantState.from_dict(state, device=torch.device("cpu")))
    largest = matrix.reshape(-1, BLOCK).abs().amax()
    assert ((read - matrix).abs() <= 0.25 * largest + 1e-30).all()
    eight = rounded("int8", matrix, "float32")
    near = eight["weight"].float() * eight["SCB"][:, None] / 127
    assert ((near - matrix).abs() <= eight["SCB"][:, None] / 250).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_computes_what_evaluate_quantize_does(
    kind: str, dtype: str, tiny_model: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    export(tiny_model, tmp_path / "out", FormatOptions(dtype=dtype, quantize=kind), checksums=False)  # type: ignore[arg-type]
    ours = loaded(tiny_model, kind, dtype)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", torch_dtype=getattr(torch, dtype))
    both = logits(ours), logits(theirs)
    size = both[1].shape[-1]
    torch.testing.assert_close(both[0][..., :size], both[1], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits(loaded(tmp_path / "out", None, dtype)), both[1], rtol=0, atol=1e-4)
    whole = logits(loaded(tiny_model, None, dtype))
    assert 0 < (whole - both[0]).abs().mean() < 0.2 * whole.abs().mean()


def test_memory_and_files_shrink(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    done = export(tiny_model, tmp_path / "out", FormatOptions(quantize=kind), checksums=False)  # type: ignore[arg-type]
    figures = done.manifest.metrics["quantized"]
    from llmforge.weights.read import open_weights

    weights = open_weights(tmp_path / "out")
    assert figures["bytes"] == weights.size
    matrices = [t for t in weights.tensors.values() if t.name.endswith("proj.weight")]
    assert {t.dtype for t in matrices} == {"U8" if kind == "int4" else "I8"}
    stated = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert stated["quant_method"] == "bitsandbytes"
    assert stated["llm_int8_skip_modules"] == ["lm_head"]
    bits = 8 * sum(t.size for t in matrices) / (2 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 128))
    assert bits == (4 if kind == "int4" else 8)


def test_a_quantized_model_is_not_quantized_again(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    export(tiny_model, tmp_path / "out", FormatOptions(quantize=kind), checksums=False)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="quantized already, by bitsandbytes; leave --quantize out"):
        loaded(tmp_path / "out", kind)
    with pytest.raises(UserError, match="are quantized"):
        export(tmp_path / "out", tmp_path / "again", FormatOptions(), checksums=False)


def test_damage_to_a_quantized_model_is_one_sentence(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    export(tiny_model, tmp_path / "out", FormatOptions(quantize="int4"), checksums=False)
    file = tmp_path / "out" / "model.safetensors"
    whole = load_file(file)
    for lost in ("model.norm.weight", "model.layers.0.mlp.up_proj.weight.absmax"):
        save_file({name: part for name, part in whole.items() if name != lost}, file)
        with pytest.raises(UserError):
            loaded(tmp_path / "out", None)


def test_contradictions_are_refused(tiny_model: Path) -> None:
    from llmforge.evaluate.options import MemoryOptions

    with pytest.raises(UsageError, match="--memory-limit contradicts --quantize"):
        MemoryOptions(quantize="int4", memory_limit="1GB")
    with pytest.raises(UsageError, match="--quantize is for --format huggingface"):
        FormatOptions(format="gguf", quantize="int8")


def test_a_transformers_that_computes_on_gpus_only_is_named(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import transformers

    export(tiny_model, tmp_path / "out", FormatOptions(quantize="int4"), checksums=False)
    monkeypatch.setattr(transformers, "__version__", "4.52.4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for model, kind in ((tiny_model, "int4"), (tmp_path / "out", None)):
        with pytest.raises(
            UserError, match=r"needs transformers 4\.53 or newer on a CPU, and this is 4\.52\.4"
        ):
            loaded(model, kind)


def test_weights_that_are_nan_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_model, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"up_proj\.weight contains NaN"):
        loaded(tmp_path / "model", "int4")


def _tiny(name: str, tmp_path: Path, tiny_model: Path) -> Path:
    """A random model of another layout, with the tokenizer of `tiny_model`."""
    import torch
    import transformers

    torch.manual_seed(0)
    common: dict[str, Any] = {"vocab_size": 320, "eos_token_id": 0, "bos_token_id": 0}
    wide = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    made: Callable[[], Any] = {
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=128, **common)
        ),
        "gemma2": lambda: transformers.Gemma2ForCausalLM(
            transformers.Gemma2Config(**wide, num_key_value_heads=2, head_dim=16, **common)
        ),
        "mixtral": lambda: transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**wide, num_key_value_heads=2, num_local_experts=4, **common)
        ),
    }[name]
    made().save_pretrained(tmp_path / name)
    for file in tiny_model.glob("tokenizer*"):
        shutil.copy(file, tmp_path / name)
    return tmp_path / name


def check_rounded(model: Path, kind: str, tmp_path: Path) -> None:
    import torch

    export(model, tmp_path / "out", FormatOptions(quantize=kind), checksums=False)  # type: ignore[arg-type]
    ours, theirs = logits(loaded(model, kind)), logits(loaded(tmp_path / "out", None))
    torch.testing.assert_close(ours[..., : theirs.shape[-1]], theirs, rtol=0, atol=1e-4)
    whole = logits(loaded(model, None))
    assert 0 < (whole - ours).abs().mean() < 0.3 * whole.abs().mean()


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_other_layouts_are_rounded_too(name: str, kind: str, tiny_model: Path, tmp_path: Path) -> None:
    check_rounded(_tiny(name, tmp_path, tiny_model), kind, tmp_path)


def test_experts_are_rounded_or_refused_where_transformers_joins_them(
    kind: str, tiny_model: Path, tmp_path: Path
) -> None:
    import transformers

    model = _tiny("mixtral", tmp_path, tiny_model)
    if int(transformers.__version__.split(".")[0]) < 5:  # which keeps a linear layer for each
        check_rounded(model, kind, tmp_path)
        return
    with pytest.raises(UserError, match="are in linear layers that bitsandbytes knows"):
        loaded(model, kind)
