"""Every weight is there, and the files are those that transformers reads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmforge.embedding.options import ResizeOptions
from llmforge.embedding.resize import resize
from llmforge.errors import UserError
from llmforge.evaluate.models import load_model
from llmforge.weights import delta
from llmforge.weights.completeness import check_complete
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.export import FormatOptions, export
from llmforge.weights.options import DeltaMakeOptions


def change(model: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Applies `edit` to the tensors by name of `model`."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    edit(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def configure(model: Path, **fields: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    config.update(fields)
    (model / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def train_load(model: Path) -> object:
    from llmforge.backends.common.model import load_model as load_for_training

    return load_for_training(ModelDirectory(model), "sdpa")


def lose_a_layer(tensors: dict[str, Any]) -> None:
    for name in [name for name in tensors if ".layers.1." in name]:
        del tensors[name]


def add_one(tensors: dict[str, Any]) -> None:
    tensors["model.layers.7.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].clone()


def cut_one(tensors: dict[str, Any]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name][:-1].clone()


def another_head(tensors: dict[str, Any]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (another_head, r"says that the model is tied, but lm_head\.weight differs from model\.embed_tokens"),
        (lose_a_layer, r"lacks 9 tensors .*the first is model\.layers\.1\."),
        (add_one, r"holds 1 tensors .*LlamaForCausalLM.* model\.layers\.7\.mlp\.up_proj\.weight"),
        (cut_one, r"model\.layers\.0\.mlp\.up_proj\.weight has the shape \(47, 32\).*\(48, 32\)"),
    ],
)
def test_every_command_refuses_other_tensors_than_the_model_has(
    edit: Any, sentence: str, tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    whole = tiny_model(tied=edit is another_head)
    model = Path(shutil.copytree(whole, tmp_path / "damaged"))
    change(model, edit)
    out = tmp_path / "out"
    for command in (
        lambda: load_model(model),  # evaluate and generate
        lambda: train_load(model),
        lambda: export(model, out, FormatOptions()),
        lambda: resize(model, new_tokenizer, out, ResizeOptions()),
        lambda: delta.make(DeltaMakeOptions(whole, model, out)),
        lambda: delta.make(DeltaMakeOptions(model, whole, out)),
    ):
        with pytest.raises(UserError, match=sentence):
            command()
    assert not out.exists()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gpt2", "gemma", "phi3", "gpt_neox"])
def test_whole_models_pass_and_each_tensor_is_missed(
    architecture: str, tied: bool, tiny_model: Callable[..., Path]
) -> None:
    if architecture == "phi3" and tied:
        pytest.skip("the same class as its untied one")
    model = tiny_model(architecture, tied=tied)
    names = list(check_complete(model).tensors)
    # One of each kind: the first layer stands for the others.
    for name in [name for name in names if not any(f".{i}." in name for i in range(1, 4))][-4:]:
        copy = Path(shutil.copytree(model, model.with_name("copy")))
        change(copy, lambda tensors, name=name: tensors.pop(name))
        with pytest.raises(UserError, match=r"lacks \d+ tensors|has no head"):
            check_complete(copy)
        shutil.rmtree(copy)


def test_an_expert_that_is_missing_is_named_as_in_the_files(tiny_model: Callable[..., Path]) -> None:
    model = tiny_model("mixtral")
    expert = next(n for n in check_complete(model).tensors if ".1." in n and "experts.2." in n)
    change(model, lambda tensors: tensors.pop(expert))
    with pytest.raises(UserError, match=f"lacks 1 tensors .*{expert}"):
        check_complete(model)


def test_what_transformers_passes_over_is_no_surplus(tiny_model: Callable[..., Path]) -> None:
    import torch

    model = tiny_model(tied=True)
    change(
        model,
        lambda t: t.update(
            {
                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),  # LLaMA files of 2023
                "lm_head.weight": t["model.embed_tokens.weight"].clone(),  # a tied head that is stored
            }
        ),
    )
    check_complete(model)
    check_complete(tiny_model(name="pickled", pickled=True))


@pytest.mark.parametrize("shards_there", [False, True])
def test_the_whole_file_is_read_before_an_index_of_an_earlier_save(
    shards_there: bool, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = tiny_model(shard_size="20KB")
    new = tiny_model(name="new", seed=5)
    if not shards_there:
        for shard in model.glob("model-*.safetensors"):
            shard.unlink()
    shutil.copy(new / "model.safetensors", model)
    (model / "consolidated.safetensors").write_bytes(b"another format")
    export(model, tmp_path / "out", FormatOptions())
    assert sorted(file.name for file in (tmp_path / "out").glob("*.safetensors*")) == ["model.safetensors"]
    name = "model.embed_tokens.weight"
    read = AutoModelForCausalLM.from_pretrained(model).get_input_embeddings().weight
    exported = load_file(tmp_path / "out/model.safetensors")[name]
    assert read.equal(load_file(new / "model.safetensors")[name])
    assert exported.equal(read[: len(exported)])
    delta.make(DeltaMakeOptions(new, model, tmp_path / "delta"))
    assert not list((tmp_path / "delta").glob("*index*"))


def test_tying_follows_class_and_configuration(
    tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    silent = tiny_model("gemma", tied=True)
    configure(silent, tie_word_embeddings=...)
    resize(silent, new_tokenizer, tmp_path / "gemma", ResizeOptions())  # tied by its class
    assert json.loads((tmp_path / "gemma/config.json").read_text())["tie_word_embeddings"] is True
    equal = tiny_model(name="llama")  # not tied by its class, whatever its head is equal to
    change(equal, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    configure(equal, tie_word_embeddings=...)
    grown = resize(equal, new_tokenizer, tmp_path / "grown", ResizeOptions())
    assert grown.manifest.metrics["tied"] is False
    assert "lm_head.weight" in check_complete(tmp_path / "grown").tensors
    change(equal, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(UserError, match=r"lacks 1 tensors .*lm_head"):
        resize(equal, new_tokenizer, tmp_path / "headless", ResizeOptions())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_nan_and_infinity_are_refused_by_name_and_row(
    value: float, dtype: str, tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    model = tiny_model(dtype=dtype)
    name = "model.layers.1.mlp.up_proj.weight"
    change(model, lambda tensors: tensors[name][5].fill_(value))
    for command in (
        lambda: load_model(model),
        lambda: train_load(model),
        lambda: export(model, tmp_path / "out", FormatOptions()),
        lambda: resize(model, new_tokenizer, tmp_path / "out", ResizeOptions()),
    ):
        with pytest.raises(UserError, match=r"up_proj.weight contains NaN or infinity in 1 of 48 rows \(5\)"):
            command()


def test_numbers_too_large_for_the_dtype_are_no_infinities(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_model()
    change(model, lambda tensors: tensors["model.norm.weight"].fill_(1e5))
    with pytest.raises(UserError, match=r"model\.norm\.weight contains values that are too large"):
        export(model, tmp_path / "out", FormatOptions(dtype="float16"))
    export(model, tmp_path / "out", FormatOptions(dtype="bfloat16"))
