"""Export: padding cut off, everything else as it is."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmforge.embedding.options import ResizeOptions
from llmforge.embedding.resize import resize
from llmforge.errors import UsageError, UserError
from llmforge.steps import Input, Manifest, read_manifest, write_manifest
from llmforge.tokenizer import load
from llmforge.weights import vocabulary as model
from llmforge.weights.export import FormatOptions, export
from llmforge.weights.verify import verify_export
from warm import TERMINAL, Warm

from .conftest import NEW_SIZE, OLD_SIZE
from .test_grow import tensors


@pytest.fixture
def checkpoint(tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path) -> Path:
    """A grown model in the place that a training gives it."""
    (tmp_path / "run" / "epoch-0_step-5").mkdir(parents=True)
    resize(tiny_model(), new_tokenizer, tmp_path / "run" / "epoch-0_step-5" / "modeling", ResizeOptions())
    shutil.copytree(tmp_path / "run" / "epoch-0_step-5" / "modeling", tmp_path / "run" / "modeling")
    return tmp_path / "run" / "epoch-0_step-5"


@pytest.fixture
def forked(warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that verifies an export is forked by one that has imported torch and transformers."""
    program = tmp_path / "compare.py"
    program.write_text("from llmforge.weights.verify import _main\n\n_main()\n")

    def run(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        assert command[:3] == [sys.executable, "-m", "llmforge.weights.verify"]
        return warm.run([str(program), *command[3:]], {**os.environ, **TERMINAL}, 600)

    monkeypatch.setattr("llmforge.weights.verify.subprocess", SimpleNamespace(run=run))


@pytest.mark.parametrize("given", ["epoch-0_step-5", "epoch-0_step-5/modeling", ".", "modeling"])
def test_export_cuts_the_padding(given: str, checkpoint: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export(checkpoint.parent / given, tmp_path / "out", FormatOptions())
    assert model.vocabulary(tmp_path / "out") == model.Vocabulary(OLD_SIZE, NEW_SIZE, NEW_SIZE)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    trained = AutoModelForCausalLM.from_pretrained(checkpoint / "modeling")
    assert exported.config.vocab_size == exported.get_input_embeddings().weight.shape[0] == NEW_SIZE
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("the cat sat 中文的词语", return_tensors="pt")["input_ids"]
    assert int(ids.max()) >= OLD_SIZE
    with torch.no_grad():
        old, new = trained(ids).logits[..., :NEW_SIZE], exported(ids).logits
    torch.testing.assert_close(new, old, rtol=0, atol=1e-6)


def test_a_plain_directory_is_trimmed_too(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny_model(rows=320)
    export(source, tmp_path / "out", FormatOptions())
    old, new = tensors(source), tensors(tmp_path / "out")
    assert (new["lm_head.weight"] == old["lm_head.weight"][:OLD_SIZE]).all()


def test_check_fits(
    checkpoint: Path, tiny_model: Callable[..., Path], new_tokenizer: Path, old_tokenizer: Path
) -> None:
    grown = checkpoint / "modeling"
    assert model.check_fits(grown, load(new_tokenizer)).size == NEW_SIZE
    with pytest.raises(UserError, match="another tokenizer"):
        model.check_fits(grown, load(old_tokenizer))
    plain = tiny_model(name="plain")
    assert model.check_fits(plain, load(old_tokenizer)).size == OLD_SIZE
    with pytest.raises(UserError, match="another tokenizer"):
        model.check_fits(plain, load(new_tokenizer))


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        export(tmp_path / "absent", tmp_path / "out", FormatOptions())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        export(tmp_path / "empty", tmp_path / "out", FormatOptions())
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes_are_converted_and_verified(dtype: str, checkpoint: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    done = export(checkpoint, tmp_path / "out", FormatOptions(dtype=dtype, verify=True))
    assert done.manifest.metrics["verified"] <= 1e-4
    wanted = getattr(torch, dtype)
    before = load_file(checkpoint / "modeling" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in after.items():
        assert value.dtype == wanted
        assert torch.equal(value, before[name][: len(value)].to(wanted)), name
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == wanted


def test_shards_have_a_largest_size(checkpoint: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    export(checkpoint, tmp_path / "out", FormatOptions(max_shard_size="20KB"))
    export(checkpoint, tmp_path / "whole", FormatOptions())
    shards = list((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 3
    largest = NEW_SIZE * 32 * 4
    assert all(
        shard.stat().st_size < 20_000 + 5_000 or shard.stat().st_size < largest + 5_000 for shard in shards
    )
    old, new = tensors(tmp_path / "whole"), tensors(tmp_path / "out")
    assert set(old) == set(new)
    assert all((old[name] == new[name]).all() for name in old)
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]


@pytest.mark.parametrize(
    ("size", "expected"), [("5GB", 5e9), ("1.5 mb", 1.5e6), ("2GiB", 2 << 30), ("77", 77)]
)
def test_shard_sizes(size: str, expected: float) -> None:
    assert FormatOptions(max_shard_size=size).max_shard_bytes == expected


@pytest.mark.parametrize("options", [{"max_shard_size": "many"}, {"max_shard_size": "0"}, {"dtype": "int8"}])
def test_wrong_options(options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=str(next(iter(options.values())))):
        FormatOptions(**options)


def test_what_fails_verification_is_not_published(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmforge.weights.verify.TOLERANCE", -1.0)
    with pytest.raises(UserError, match="--verify"):
        export(checkpoint, tmp_path / "out", FormatOptions(verify=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("forked")
def test_verify_compares_logits(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    one, other = tiny_model(), tiny_model(name="other", seed=1)
    vocabulary = model.Vocabulary(OLD_SIZE, OLD_SIZE, OLD_SIZE)
    assert verify_export(one, one, vocabulary) == 0
    with pytest.raises(UserError, match="differ by"):
        verify_export(one, other, vocabulary)
    (other / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="could not compare"):
        verify_export(one, other, vocabulary)


def test_the_card_tells_the_lineage(
    tiny_model: Callable[..., Path], new_tokenizer: Path, tmp_path: Path
) -> None:
    source = tiny_model()
    resize(source, new_tokenizer, tmp_path / "grown", ResizeOptions())
    # A training as it leaves itself behind: its model names no inputs, the training does.
    run = tmp_path / "run"
    shutil.copytree(tmp_path / "grown", run / "modeling")
    vocabulary = read_manifest(tmp_path / "grown").outputs
    outputs = {key: vocabulary[key] for key in ("vocabulary", "tokenizer", "fingerprint", "files")}
    write_manifest(run / "modeling" / "llmforge.json", Manifest("train-model", {}, outputs=outputs))
    (tmp_path / "data").mkdir()
    ledger = {"ledger": {"written": {"documents": 1234, "tokens": 56789}}}
    write_manifest(
        tmp_path / "data" / "llmforge.json",
        Manifest("prepare-data", {}, outputs={"fingerprint": "xxh3:d"}, metrics=ledger),
    )
    inputs = [Input(str(tmp_path / "grown"), outputs["fingerprint"]), Input(str(tmp_path / "data"), "xxh3:d")]
    training = Manifest("train", {"stages": [{"name": "new rows"}]}, inputs, {}, {"loss": 1.25})
    write_manifest(run / "llmforge.json", training)

    export(run, tmp_path / "out", FormatOptions())
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    steps = [line.removeprefix("### ") for line in card.splitlines() if line.startswith("### ")]
    assert steps == ["train-model", "train", "init-model", "prepare-data", "Original inputs"]
    for fact in (
        "Source model: `source`",
        "subtoken-mean",
        "56789",
        "new rows",
        "1.25",
        "370 tokens",
        "69 are new",
    ):
        assert fact in card, fact
    manifest = read_manifest(tmp_path / "grown")
    for one in manifest.inputs:
        assert one.fingerprint in card

    export(source, tmp_path / "plain", FormatOptions())
    assert "are unknown" in (tmp_path / "plain" / "README.md").read_text()
