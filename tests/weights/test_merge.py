"""merge: what numpy computes of the same tensors, rows that some models lack, and what cannot be merged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llmforge.embedding.options import ResizeOptions
from llmforge.embedding.resize import resize
from llmforge.errors import UsageError, UserError
from llmforge.weights import merging
from llmforge.weights.merge import merge
from llmforge.weights.merging.base import Rows
from llmforge.weights.options import MergeOptions
from llmforge.weights.read import open_weights
from llmforge.weights.vocabulary import vocabulary

from .conftest import NEW_SIZE, OLD_SIZE

Make = Callable[..., Path]
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def read(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in sorted(directory.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def run(output: Path, *models: Path, **options: Any) -> Any:
    return merge(MergeOptions(models=list(models), output=output, **options))


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.double(), other.double(), rtol=2e-6, atol=1e-7)


def arc(one: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
    one, other = one.double(), other.double()
    angle = torch.arccos((one * other).sum() / one.norm() / other.norm())
    return (torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * other) / torch.sin(angle)


def test_every_tensor_is_what_the_formula_says(tiny_model: Make, tmp_path: Path) -> None:
    paths = [tiny_model(name=f"m{seed}", seed=seed) for seed in range(3)]
    a, b, c = map(read, paths)
    run(tmp_path / "mean", *paths, weights=[1.0, 1.0, 2.0])
    run(tmp_path / "arc", *paths[:2], method="slerp", weights=[3.0, 1.0])
    run(tmp_path / "task", *paths[1:], method="task-arithmetic", base=paths[0], weights=[0.5, -0.25])
    mean, sphere, task = (read(tmp_path / name) for name in ("mean", "arc", "task"))
    assert mean.keys() == sphere.keys() == task.keys() == a.keys()
    for name in a:
        assert close(mean[name], (a[name] + b[name] + 2 * c[name]) / 4), name
        assert close(task[name], a[name] + 0.5 * (b[name] - a[name]) - 0.25 * (c[name] - a[name])), name
        rows = slice(None) if name not in TABLES else slice(OLD_SIZE)
        assert close(sphere[name][rows].float(), arc(a[name][rows], b[name][rows], 0.25).float()), name


@given(values=st.data(), share=st.floats(0.01, 0.99))
@settings(max_examples=60, deadline=None)
def test_slerp_keeps_lengths_and_ends(tmp_path_factory: Any, values: Any, share: float) -> None:
    """Of two tensors of one length the result has it, too; of one direction, it is the mean."""
    numbers = st.lists(st.floats(-2, 2, width=32).filter(lambda x: abs(x) > 1e-3), min_size=6, max_size=6)
    one, other = (np.array(values.draw(numbers), np.float64) for _ in range(2))
    one, other = one / np.linalg.norm(one), other / np.linalg.norm(other)
    file = tmp_path_factory.mktemp("slerp") / "model.safetensors"
    save_file(
        {"a": torch.tensor(one).reshape(2, 3).float(), "b": torch.tensor(other).reshape(2, 3).float()}, file
    )
    tensors = open_weights(file.parent).tensors
    first, second = merging.find("slerp").factors(
        [Rows(tensors[name], 0, 2) for name in "ab"], [1 - share, share]
    )
    if abs(one @ other) < 0.999:
        assert np.linalg.norm(first * one + second * other) == pytest.approx(1, abs=1e-5)
    assert merging.find("slerp").factors([Rows(tensors["a"], 0, 2)] * 2, [1 - share, share]) == pytest.approx(
        [1 - share, share], abs=1e-3
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_alone_keeps_its_bits(dtype: str, tiny_model: Make, tmp_path: Path) -> None:
    """With a weight of 0 for all others; and the mean of a model with its copy is itself."""
    one, other = tiny_model(name="one", dtype=dtype), tiny_model(name="other", dtype=dtype, seed=1)
    copy = tmp_path / "copy"
    shutil.copytree(one, copy)
    run(tmp_path / "alone", one, other, weights=[2.0, 0.0])
    run(tmp_path / "twin", one, copy)
    for name, tensor in read(one).items():
        assert torch.equal(read(tmp_path / "alone")[name], tensor)
        assert torch.equal(read(tmp_path / "twin")[name], tensor)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", ["linear", "slerp", "task-arithmetic"])
def test_rows_that_the_source_lacks_are_those_of_the_resized_models(
    method: str, tied: bool, tiny_model: Make, new_tokenizer: Path, tmp_path: Path
) -> None:
    source = tiny_model(tied=tied)
    other = tiny_model(tied=tied, name="trained", seed=1)
    resize(other, new_tokenizer, tmp_path / "resized", ResizeOptions())
    options: dict[str, Any] = {"weights": [0.3, 0.7]}
    models = [source, tmp_path / "resized"]
    if method == "task-arithmetic":
        options, models = {"base": source, "weights": [0.7]}, models[1:]
    made = run(tmp_path / "merged", *models, method=method, **options)
    assert made.manifest.metrics["rows_of_some"] == NEW_SIZE - OLD_SIZE
    before, grown, merged = (read(path) for path in (source, tmp_path / "resized", tmp_path / "merged"))
    for name in [name for name in TABLES if name in merged]:
        assert torch.equal(merged[name][OLD_SIZE:], grown[name][OLD_SIZE:])  # and the padding
        one, two = before[name][:OLD_SIZE], grown[name][:OLD_SIZE]
        expected = arc(one, two, 0.7) if method == "slerp" else 0.3 * one.double() + 0.7 * two.double()
        assert close(merged[name][:OLD_SIZE].double(), expected)
    words = vocabulary(tmp_path / "merged")
    assert (words.source, words.size) == (OLD_SIZE, NEW_SIZE)


def test_three_sizes_share_what_each_has(tiny_model: Make, new_tokenizer: Path, tmp_path: Path) -> None:
    """Of the rows that two of three models have, the mean is of those two by their weights."""
    from .conftest import make_tokenizer

    middle = make_tokenizer(tmp_path / "middle", 340)
    for name, target, seed in (("b", middle, 1), ("c", new_tokenizer, 2)):
        resize(tiny_model(name=f"source-{name}", seed=seed), target, tmp_path / name, ResizeOptions())
    source = tiny_model(seed=0)
    run(tmp_path / "merged", tmp_path / "b", source, tmp_path / "c", weights=[1.0, 1.0, 3.0])
    a, b, c, merged = (
        read(path)["lm_head.weight"] for path in (source, tmp_path / "b", tmp_path / "c", tmp_path / "merged")
    )
    assert close(merged[:OLD_SIZE], (a[:OLD_SIZE] + b[:OLD_SIZE] + 3 * c[:OLD_SIZE]) / 5)
    assert close(merged[OLD_SIZE:340], (b[OLD_SIZE:340] + 3 * c[OLD_SIZE:340]) / 4)
    assert torch.equal(merged[340:], c[340:])


def test_a_tied_source_goes_into_both_tables_of_an_untied_model(
    tiny_model: Make, new_tokenizer: Path, tmp_path: Path
) -> None:
    source, other = tiny_model(tied=True), tiny_model(tied=True, name="trained", seed=1)
    resize(other, new_tokenizer, tmp_path / "resized", ResizeOptions(untie=True))
    run(tmp_path / "merged", source, tmp_path / "resized")
    before, grown, merged = (read(path) for path in (source, tmp_path / "resized", tmp_path / "merged"))
    for name in TABLES:
        expected = (before[TABLES[0]][:OLD_SIZE] + grown[name][:OLD_SIZE]) / 2
        assert close(merged[name][:OLD_SIZE], expected)
    resize(other, new_tokenizer, tmp_path / "tied", ResizeOptions())
    untied = tiny_model(tied=False, name="untied")
    with pytest.raises(UserError, match=r"cannot be merged: the one with fewer tokens has a head of its own"):
        run(tmp_path / "no", untied, tmp_path / "tied")


def test_blocks_of_a_tensor_are_merged_like_the_whole(
    tiny_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tiny_model(name=f"m{seed}", seed=seed) for seed in range(2)]
    run(tmp_path / "whole", *paths, method="slerp")
    monkeypatch.setattr("llmforge.weights.tensor.BLOCK_BYTES", 256)
    monkeypatch.setattr("llmforge.weights.merge.BLOCK_BYTES", 256)
    run(tmp_path / "blocks", *paths, method="slerp")
    for name, tensor in read(tmp_path / "whole").items():
        assert close(read(tmp_path / "blocks")[name], tensor)


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gpt2", "qwen2"])
def test_transformers_reads_it(architecture: str, tiny_model: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    paths = [tiny_model(architecture, name=f"m{seed}", seed=seed) for seed in range(2)]
    run(tmp_path / "merged", *paths, dtype="bfloat16")
    models = [AutoModelForCausalLM.from_pretrained(path).float() for path in (*paths, tmp_path / "merged")]
    a, b, merged = (dict(model.named_parameters()) for model in models)
    for name in merged:
        assert torch.equal(merged[name], ((a[name] * 0.5 + b[name] * 0.5).bfloat16().float())), name
    stated = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert stated.get("torch_dtype", stated.get("dtype")) == "bfloat16"


def test_models_that_do_not_go_together_are_refused(
    tiny_model: Make, old_tokenizer: Path, tmp_path: Path
) -> None:
    source = tiny_model()
    wide = tiny_model(name="wide", intermediate_size=64)
    with pytest.raises(
        UserError, match=r"cannot be merged: model.layers.0.mlp.down_proj.weight is \[32, 64\] and \[32, 48\]"
    ):
        run(tmp_path / "no", source, wide)
    deep = tiny_model(name="deep", num_hidden_layers=3)
    with pytest.raises(
        UserError, match=r"model.layers.2.input_layernorm.weight is missing and \[32\]|is \[32\] and missing"
    ):
        run(tmp_path / "no", source, deep)
    heads = tiny_model(name="heads", num_attention_heads=2, num_key_value_heads=1, head_dim=16)
    with pytest.raises(UserError, match=r"num_attention_heads is 2 and 4|num_attention_heads is 4 and 2"):
        run(tmp_path / "no", source, heads)
    other = tiny_model(name="other")
    words = json.loads((other / "tokenizer.json").read_text())
    vocab = words["model"]["vocab"]
    one, two = sorted(vocab, key=vocab.get)[60:62]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    (other / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(UserError, match=r"cannot be merged: id 60 is .* must extend those of all others"):
        run(tmp_path / "no", source, other)
    assert not (tmp_path / "no").exists()


def test_a_model_with_nan_is_named(tiny_model: Make, tmp_path: Path) -> None:
    source, bad = tiny_model(), tiny_model(name="bad", seed=1)
    weights = load_file(bad / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"bad/model.safetensors: model.norm.weight contains NaN or infinity"):
        run(tmp_path / "no", source, bad)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weights": [1.0]}, r"--weights has 1 numbers for 2 models"),
        ({"weights": [1.0, -1.0]}, r"--weights: must not be negative"),
        ({"weights": [0.0, 0.0]}, r"not all 0"),
        ({"method": "mean"}, r"--method mean: must be one of linear, slerp, task-arithmetic\."),
        ({"method": "task-arithmetic"}, r"--method task-arithmetic needs --base"),
        ({"base": Path("x")}, r"--base contradicts --method linear"),
        ({"weights": [1.0, float("inf")]}, r"--weights: must be finite"),
        ({"dtype": "int8"}, r"--dtype int8 is not known"),
    ],
)
def test_contradictions_are_refused(
    options: dict[str, Any], sentence: str, tiny_model: Make, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        run(tmp_path / "no", tiny_model(), tiny_model(name="two"), **options)


def test_one_model_twice_and_one_alone_are_refused(tiny_model: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is given twice; give it a larger weight"):
        run(tmp_path / "no", tiny_model(), tmp_path / "source")
    with pytest.raises(UsageError, match=r"give at least two models"):
        run(tmp_path / "no", tmp_path / "source")
    models = [tiny_model(name=name) for name in "abc"]
    with pytest.raises(UsageError, match=r"slerp merges two models, not 3"):
        run(tmp_path / "no", *models, method="slerp")


LONGEST = """
import numpy as np
from llmforge.weights.merging.base import Method

class Longest(Method):
    text = "of each tensor, the one of the largest norm"

    def default(self, models):
        return [1.0] * models

    def factors(self, rows, weights):
        norms = [sum(float((block**2).sum()) for block in part.blocks()) for part in rows]
        return [float(norm == max(norms)) for norm in norms]

METHOD = Longest()
"""


def test_one_file_adds_a_method(tiny_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "by_norm.py").write_text(LONGEST)
    monkeypatch.setattr(merging, "__path__", [*merging.__path__, str(tmp_path / "files")])
    merging.methods.cache_clear()
    try:
        paths = [tiny_model(name=f"m{seed}", seed=seed) for seed in range(2)]
        run(tmp_path / "merged", *paths, method="by-norm")
    finally:
        merging.methods.cache_clear()
    a, b, merged = map(read, (*paths, tmp_path / "merged"))
    for name in merged:
        assert torch.equal(merged[name], max(a[name], b[name], key=torch.linalg.norm)), name


def test_the_command_merges_checkpoints_of_a_training(
    tiny_model: Make, tmp_path: Path, llmforge: Callable[..., Any]
) -> None:
    """The newest two of three; done again it is found finished, and a changed model is another input."""
    for number in (1, 2, 3):
        step = tmp_path / "run" / f"epoch-0_step-{number * 100}"
        shutil.copytree(tiny_model(name=f"m{number}", seed=number), step / "modeling")
    words = ("merge", "--models", tmp_path / "run", "--checkpoints", 2, "--output", tmp_path / "merged")
    said = llmforge(*words)
    assert "2 models" in said.stdout
    one, two, merged = (read(tmp_path / name) for name in ("m2", "m3", "merged"))
    assert all(close(merged[name], (one[name] + two[name]) / 2) for name in merged)
    assert json.loads(llmforge(*words, "--json").stdout)["skipped"]
    refused = llmforge(*words[:4], 4, *words[5:], code=1)
    assert "--checkpoints 4" in refused.stderr
    assert "has 3 checkpoints" in refused.stderr
