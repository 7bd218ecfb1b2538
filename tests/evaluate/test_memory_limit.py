"""--memory-limit: what does not fit is read from disk whenever it is computed, with equal logits."""

import json

import pytest
import torch

from llmforge.errors import UsageError, UserError
from llmforge.evaluate import offload
from llmforge.evaluate.models import load_model
from llmforge.evaluate.options import MemoryOptions

MB = 10**6


@pytest.fixture
def used(monkeypatch):
    """A process without libraries of its own, so that limits of a tiny model's size mean something."""
    monkeypatch.setattr(offload, "resident_memory", lambda: 0)
    monkeypatch.setattr(offload, "SPARE", 0)


def logits(loaded):
    ids = torch.arange(40).reshape(2, 20)
    with torch.inference_mode():
        return loaded.model(input_ids=ids).logits


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_equal_whatever_stays_on_disk(tiny_model, dtype):
    whole = load_model(tiny_model, dtype)
    size = sum(one.numel() * one.itemsize for one in whole.model.parameters())
    some, least = (
        load_model(tiny_model, dtype, memory=MemoryOptions(memory_limit=f"{int(size * part) // 1000}KB"))
        for part in (0.95, 0.75)
    )
    assert 0 < some.placement.on_disk < least.placement.on_disk < size
    on_meta = [one.device.type == "meta" for one in least.model.parameters()]
    assert any(on_meta)
    assert not all(on_meta)
    for loaded in (some, least):
        assert torch.equal(logits(loaded), logits(whole))
        assert torch.equal(logits(loaded), logits(whole)), "the second time, too"


@pytest.mark.usefixtures("used")
def test_a_limit_below_one_layer_is_refused_with_the_size_that_fits(tiny_model):
    with pytest.raises(UserError, match="--memory-limit 50 KB is too small") as refused:
        load_model(tiny_model, memory=MemoryOptions(memory_limit="50KB"))
    needed = str(refused.value).split("it needs ")[1].split(" with")[0].replace(" ", "")
    assert load_model(tiny_model, memory=MemoryOptions(memory_limit=needed)).placement.on_disk


def test_a_model_that_fits_stays_in_memory(tiny_model):
    loaded = load_model(tiny_model, memory=MemoryOptions(memory_limit="64GB"))
    assert loaded.placement.on_disk == 0
    assert not any(one.device.type == "meta" for one in loaded.model.parameters())


def test_what_is_no_size_is_refused():
    with pytest.raises(UsageError, match="--memory-limit many is not a size"):
        MemoryOptions(memory_limit="many")


def test_the_commands_say_what_they_took(llmforge, tiny_model, tmp_path):
    (tmp_path / "en.txt").write_text("the cat sat on the mat\n" * 3)
    words = ("evaluate", "--model", tiny_model, "--data", tmp_path / "en.txt", "--json")
    limited = llmforge(*words, "--memory-limit", "4GB")
    assert "of --memory-limit 4 GB" in limited.stderr
    assert json.loads(limited.stdout) == json.loads(llmforge(*words).stdout)
    refused = llmforge(*words, "--memory-limit", "100MB", code=1)
    assert "--memory-limit 100 MB is too small" in refused.stderr
    said = llmforge("generate", "--model", tiny_model, "--prompt", "the cat", "--memory-limit", "4GB")
    assert "peak memory" in said.stderr


@pytest.mark.stress
def test_smollm2_takes_no_more_than_its_limit(llmforge, real_input):
    """538 MB of weights in a process that has some 500 MB of libraries."""
    held_out = real_input("demo") / "heldout" / "en.jsonl"
    words = ("evaluate", "--model", real_input("smollm2"), "--data", held_out, "--max-documents", 2)
    words = (*words, "--max-characters", 100, "--batch-tokens", 64, "--json")
    done = llmforge(*words, "--memory-limit", "1GB", cold=True)
    assert "exceeded" not in done.stderr
    assert "MB of weights stayed on disk" in done.stderr
    assert json.loads(done.stdout)["smollm2"]["en"]["bits_per_byte"] < 2
