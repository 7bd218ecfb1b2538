"""Growing: old rows bit for bit, every new row initialized, nothing else touched."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from llmforge.embedding.options import ResizeOptions
from llmforge.embedding.resize import resize
from llmforge.embedding.subtokens import spellings
from llmforge.errors import UsageError, UserError
from llmforge.tokenizer import load
from llmforge.weights import vocabulary as model

from .conftest import ARCHITECTURES, NEW_SIZE, OLD_SIZE, TEXTS


def tensors(directory: Path) -> dict[str, "np.ndarray"]:
    """All tensors of a directory; bfloat16 as its bits."""
    import torch

    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                value = opened.get_tensor(name)
                found[name] = (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_grows(
    architecture: str, tied: bool, tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = tiny_model(architecture, tied=tied)
    finished = resize(source, new_tokenizer, tmp_path / "grown", ResizeOptions())
    assert finished.manifest.outputs["vocabulary"] == {"source": OLD_SIZE, "size": NEW_SIZE, "padded": 384}
    assert finished.manifest.metrics["tied"] is tied

    grown, report = AutoModelForCausalLM.from_pretrained(tmp_path / "grown", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert grown.config.vocab_size == 384
    before = AutoModelForCausalLM.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            old = before(ids).logits
            new = grown(ids).logits[..., :OLD_SIZE]
        assert torch.equal(old.softmax(-1), new.softmax(-1))
    assert len(AutoTokenizer.from_pretrained(tmp_path / "grown")) == NEW_SIZE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_are_the_mean_of_their_subtokens(
    dtype: str, tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    import torch

    source = tiny_model(dtype=dtype)
    resize(source, new_tokenizer, tmp_path / "grown", ResizeOptions())
    old_tokenizer, target = load(source), load(new_tokenizer)
    text = target.token_bytes()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        with safe_open(source / "model.safetensors", "pt") as file:
            old = file.get_tensor(name)
        with safe_open(tmp_path / "grown" / "model.safetensors", "pt") as file:
            new = file.get_tensor(name)
        assert new.dtype == old.dtype
        assert torch.equal(new[:OLD_SIZE], old)
        for row, ids in enumerate(spellings(old_tokenizer, target), start=OLD_SIZE):
            assert b"".join(old_tokenizer.token_bytes()[i] for i in ids) == text[row]
            torch.testing.assert_close(new[row], old[ids].float().mean(0).to(old.dtype), rtol=0.01, atol=1e-6)
        for row in range(NEW_SIZE, 384):
            torch.testing.assert_close(new[row], old.float().mean(0).to(old.dtype), rtol=0.01, atol=1e-5)


@pytest.mark.parametrize("layout", ["one file", "shards", "pickled"])
def test_other_tensors_are_copied_bit_for_bit(
    layout: str, tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    source = tiny_model(
        "gpt2", tied=True, pickled=layout == "pickled", shard_size="20KB" if layout == "shards" else "5GB"
    )
    resize(source, new_tokenizer, tmp_path / "grown", ResizeOptions())
    new = tensors(tmp_path / "grown")
    if layout == "pickled":
        import torch

        loaded = torch.load(source / "pytorch_model.bin", weights_only=True)
        old = {name: value.numpy() for name, value in loaded.items() if name != "lm_head.weight"}
    else:
        old = tensors(source)
    assert set(new) == set(old)
    for name, value in old.items():
        assert np.array_equal(new[name][: len(value)], value), name
        assert name.endswith("wte.weight") or new[name].shape == value.shape
    index = tmp_path / "grown" / "model.safetensors.index.json"
    assert index.is_file() is (layout == "shards")
    if layout == "shards":
        listed = json.loads(index.read_text())
        assert set(listed["weight_map"]) == set(new)
        assert listed["metadata"]["total_size"] == sum(value.nbytes for value in new.values())


def test_new_ids_in_old_padding_rows_are_initialized(
    tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    source = tiny_model(rows=448)
    resize(source, new_tokenizer, tmp_path / "grown", ResizeOptions())
    old, new = tensors(source)["lm_head.weight"], tensors(tmp_path / "grown")["lm_head.weight"]
    assert new.shape == old.shape == (448, 32)
    assert model.vocabulary(tmp_path / "grown") == model.Vocabulary(OLD_SIZE, NEW_SIZE, 448)
    for row, ids in enumerate(spellings(load(source), load(new_tokenizer)), start=OLD_SIZE):
        np.testing.assert_allclose(new[row], old[ids].mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        new[NEW_SIZE:], np.repeat(old[None, :OLD_SIZE].mean(1), 448 - NEW_SIZE, 0), atol=1e-6
    )


def test_padding_is_for_tensor_parallel_sizes(
    tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    resize(tiny_model(), new_tokenizer, tmp_path / "grown", ResizeOptions(pad_to_multiple_of=100, tp=4))
    assert model.vocabulary(tmp_path / "grown").padded == 400


@pytest.mark.parametrize("init", ["mean", "gaussian"])
def test_statistical_rows(
    init: str, tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    source = tiny_model()
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        resize(source, new_tokenizer, tmp_path / name, ResizeOptions(init=init, seed=seed))
    old, one = tensors(source), tensors(tmp_path / "one")
    same = (tmp_path / "one/model.safetensors").read_bytes()
    assert (tmp_path / "again/model.safetensors").read_bytes() == same
    assert ((tmp_path / "other/model.safetensors").read_bytes() == same) is (init == "mean")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = one[name][OLD_SIZE:NEW_SIZE]
        if init == "mean":
            np.testing.assert_allclose(rows, np.repeat(old[name].mean(0)[None], len(rows), 0), atol=1e-6)
        else:  # 69 rows of 32 values of variance 0.04
            np.testing.assert_allclose(rows.std(), old[name].std(), rtol=0.1)
            assert abs(rows.mean() - old[name].mean()) < 0.02


@pytest.mark.parametrize("head_init", ["mean", "first-subtoken"])
def test_heads_of_their_own(
    head_init: str, tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    source = tiny_model()
    resize(source, new_tokenizer, tmp_path / "grown", ResizeOptions(head_init=head_init))
    old, new = tensors(source), tensors(tmp_path / "grown")
    spelled = spellings(load(source), load(new_tokenizer))
    for row, ids in enumerate(spelled, start=OLD_SIZE):
        name = "model.embed_tokens.weight"
        np.testing.assert_allclose(new[name][row], old[name][ids].mean(0), atol=1e-6)
        head = old["lm_head.weight"]
        expected = head.mean(0) if head_init == "mean" else head[ids[0]]
        np.testing.assert_allclose(new["lm_head.weight"][row], expected, atol=1e-6)


def test_a_tied_model_has_one_rule(
    tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--head-init"):
        resize(tiny_model(tied=True), new_tokenizer, tmp_path / "grown", ResizeOptions(head_init="mean"))
    assert not (tmp_path / "grown").exists()


def test_norm_correction(tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path) -> None:
    source = tiny_model()
    resize(source, new_tokenizer, tmp_path / "grown", ResizeOptions(norm_correction=True))
    old, new = (tensors(where)["lm_head.weight"] for where in (source, tmp_path / "grown"))
    norms = np.linalg.norm(new[OLD_SIZE:NEW_SIZE], axis=1)
    np.testing.assert_allclose(norms, np.median(np.linalg.norm(old, axis=1)), rtol=1e-4)


def test_odd_rows_are_reported_and_left_out(
    tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import load_file, save_file

    source = tiny_model()
    values = load_file(source / "model.safetensors")
    head = values["lm_head.weight"]
    used = sorted({i for ids in spellings(load(source), load(new_tokenizer)) for i in ids})
    head[used[0]], head[used[1]], head[used[2]] = np.nan, 0, head[used[3]]
    head[used[4]] *= 0.001
    save_file(values, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"lm_head\.weight contains NaN .* in 1 of 301 rows .*--replace-nan-rows"
    ):
        resize(source, new_tokenizer, tmp_path / "grown", ResizeOptions())
    finished = resize(source, new_tokenizer, tmp_path / "grown", ResizeOptions(replace_nan_rows=True))
    report = finished.manifest.metrics["preflight"]["head"]
    assert (report["not_finite"], report["zero"], report["untrained"]) == (1, 1, 3)
    said = capsys.readouterr().err
    assert all(word in said for word in ("NaN", "zero", "untrained"))
    new = tensors(tmp_path / "grown")["lm_head.weight"]
    assert np.isfinite(new[OLD_SIZE:]).all()
    others = np.delete(head, [used[0], used[1]], axis=0)
    assert np.allclose(new[used[0]], others.mean(axis=0), atol=1e-6)
    kept = np.delete(np.arange(OLD_SIZE), used[0])
    assert np.array_equal(new[kept], head[kept])


def test_a_tokenizer_that_is_no_extension(
    tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    definition = json.loads((new_tokenizer / "tokenizer.json").read_text())
    vocabulary = definition["model"]["vocab"]
    one, two = [piece for piece, i in vocabulary.items() if i in (290, 291)]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other / "tokenizer.json").write_text(json.dumps(definition))
    (other / "tokenizer_config.json").write_text((new_tokenizer / "tokenizer_config.json").read_text())
    with pytest.raises(UserError, match=r"does not extend .* id 290 "):
        resize(tiny_model(), other, tmp_path / "grown", ResizeOptions())
    assert not (tmp_path / "grown").exists()
    resize(tmp_path / "source", new_tokenizer, tmp_path / "grown", ResizeOptions())
    with pytest.raises(UserError, match="fewer than"):
        resize(tmp_path / "grown", load(tmp_path / "source").directory, tmp_path / "smaller", ResizeOptions())


def test_fewer_rows_than_ids(tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"256 embedding rows.*301 ids"):
        resize(tiny_model(rows=256), new_tokenizer, tmp_path / "grown", ResizeOptions())
    with pytest.raises(UserError, match=r"256 embedding rows.*301 ids"):
        model.vocabulary(tmp_path / "source")
