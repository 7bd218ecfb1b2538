"""Packed rows of the models people use: transformers' own values of each document, or a refusal in a sentence."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmforge.backends import registry
from llmforge.backends.base import World
from llmforge.backends.build import build_engine
from llmforge.backends.common import attention, attention_check, packing
from llmforge.backends.common.attention import NAMES, Terms, by_flex, by_sdpa
from llmforge.backends.common.documents import Documents
from llmforge.backends.common.model import load_model
from llmforge.errors import UserError
from llmforge.train.options import TrainOptions
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.vocabulary import Vocabulary

from .packed_rows import BASE, ONE_BY_ONE, PACKED, SIZES, STATE, WINDOW, largest_difference, rows_of, saved

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", PACKED)
def test_documents_in_a_row_have_the_values_of_transformers(name: str, tmp_path: Path) -> None:
    reference = saved(tmp_path, *PACKED[name])
    ours = load_model(ModelDirectory(tmp_path), NAMES["sdpa"]).eval()
    assert packing.way_of(ours).packed, packing.way_of(ours)
    assert largest_difference(ours, reference, SIZES) < 1e-4


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_attention_that_is_not_ours_is_computed_by_transformers(name: str, tmp_path: Path) -> None:
    reference = saved(tmp_path, *ONE_BY_ONE[name])
    ours = load_model(ModelDirectory(tmp_path), NAMES["sdpa"]).eval()
    assert largest_difference(ours, reference, SIZES) < 1e-4


@pytest.mark.parametrize("name", ["mistral", "gemma 2", "gpt-oss", "stablelm"])
def test_gradients_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    reference = saved(tmp_path, *{**PACKED, **ONE_BY_ONE}[name])
    ours = load_model(ModelDirectory(tmp_path), NAMES["sdpa"]).eval()
    ids, target = torch.randint(1, 100, (1, sum(SIZES))), torch.randn(1, sum(SIZES), BASE["hidden_size"])
    for hidden in rows_of(ours, reference, ids, SIZES):
        (hidden * target).sum().backward()
    for (where, mine), theirs in zip(ours.named_parameters(), reference.parameters(), strict=True):
        if theirs.grad is not None:
            error = (mine.grad - theirs.grad).abs().max() / theirs.grad.abs().max().clamp(min=1e-3)
            assert error < 1e-3, where


@pytest.mark.slow
def test_every_kind_of_attention_in_transformers_4() -> None:
    """Transformers' own values, or a refusal in a sentence; by other values than them no model is trained. Version 4 gives
    a window of no layer to all of them; llmforge computes what version 5 does (tests/weights/test_config.py).
    """
    python = os.environ.get("LLMFORGE_PYTHON_TRANSFORMERS4")
    if not python:
        if os.environ.get("CI") == "true":
            pytest.fail("LLMFORGE_PYTHON_TRANSFORMERS4 must name an interpreter with transformers 4.51.3")
        pytest.skip("LLMFORGE_PYTHON_TRANSFORMERS4 is not set")
    script = Path(__file__).with_name("packed_rows.py")
    source = str(Path(packing.__file__).parents[2])
    done = subprocess.run(
        [python, script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": source}
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["transformers"].startswith("4.")
    refused = {name: value for name, value in found["cases"].items() if isinstance(value, str)}
    computed = {name: value for name, value in found["cases"].items() if name not in refused}
    assert {name for name, value in computed.items() if not value < 1e-4} == {"qwen2, no layer"}
    assert len(computed) >= 20
    assert refused.keys() == {"qwen2", "qwen3"}


@pytest.mark.parametrize("name", STATE)
def test_a_model_with_state_takes_one_document_per_row_alone(name: str, tmp_path: Path) -> None:
    reference = saved(tmp_path, *STATE[name])
    ours = load_model(ModelDirectory(tmp_path), NAMES["sdpa"]).eval()
    with pytest.raises(UserError, match="--documents-per-row 1"):
        largest_difference(ours, reference, (20, 30))
    ids = torch.randint(1, 100, (2, 40))
    documents = Documents(((30, 10), (40,)), CPU, (True, False))
    with torch.no_grad():
        got = ours.base_model(input_ids=ids, use_cache=False, documents=documents).last_hidden_state
        alone = reference.base_model(input_ids=ids[:1, :30], use_cache=False).last_hidden_state
    torch.testing.assert_close(got[:1, :30], alone, atol=1e-4, rtol=1e-4)


def test_a_kernel_that_passes_over_the_window_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: a window that is longer by one token is another attention."""
    from transformers import MistralConfig

    attention.register()
    config = MistralConfig(**{**BASE, "sliding_window": WINDOW})
    assert attention_check.find_way(config, NAMES["sdpa"]).packed
    attention_check._FOUND.clear()
    of = Terms.of

    def longer(*given: Any) -> Terms:
        terms = of(*given)
        return replace(terms, window=terms.window and terms.window + 1)

    monkeypatch.setattr(Terms, "of", longer)
    way = attention_check.find_way(config, NAMES["sdpa"])
    attention_check._FOUND.clear()
    assert not way.packed
    assert way.differs == "MistralAttention"


def test_an_encoder_is_no_causal_model() -> None:
    from transformers import BertConfig

    attention.register()
    config = BertConfig(**{**BASE, "is_decoder": False})
    with pytest.raises(UserError, match="attends to later tokens"):
        attention_check.find_way(config, NAMES["sdpa"])


def test_a_keyword_that_says_something_is_not_passed_over() -> None:
    states = [torch.randn(1, 2, 6, 8) for _ in range(3)]
    with pytest.raises(UserError, match="position_bias"):
        by_sdpa(torch.nn.Module(), *states, None, position_bias=torch.zeros(1, 2, 6, 6))
    with pytest.raises(UserError, match="is_causal"):
        by_sdpa(torch.nn.Module(), *states, None, is_causal=False)


@pytest.mark.parametrize(
    "terms", [{"sliding_window": 16}, {"softcap": 3.0}, {"sliding_window": 9, "softcap": 3.0}]
)
def test_flex_attention_has_the_terms_of_sdpa(terms: dict[str, Any]) -> None:
    torch.manual_seed(0)
    states = [torch.randn(2, heads, 128, 16) for heads in (4, 2, 2)]
    documents = Documents(((40, 50, 38), (128,)), CPU)
    one, other = (
        kernel(torch.nn.Module(), *states, None, documents=documents, **terms)[0]
        for kernel in (by_flex, by_sdpa)
    )
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_blocks_of_a_window_are_the_whole_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [torch.randn(1, 2, 100, 8) for _ in range(3)]
    whole, _ = by_sdpa(torch.nn.Module(), *states, None, sliding_window=7)
    monkeypatch.setattr(attention, "BLOCK", 16)
    blocks, _ = by_sdpa(torch.nn.Module(), *states, None, sliding_window=7)
    torch.testing.assert_close(whole, blocks, atol=1e-6, rtol=1e-6)


def test_what_a_plugin_cannot_compute_is_refused() -> None:
    alone = packing.Way("eager", packed=False, differs="BloomAttention")
    packing.check_rows(alone, registry.find("ddp"), 512, 9, tell=False)
    packing.check_rows(alone, registry.find("fsdp"), 512, 1, tell=False)
    for backend in registry.OWN.values():
        if backend.calls_again:
            packing.check_rows(alone, backend, 512, 2, tell=False)
            continue
        with pytest.raises(UserError) as refused:
            packing.check_rows(alone, backend, 512, 2, tell=False)
        assert str(refused.value) == (
            "BloomAttention is not what llmforge's kernels compute, so documents are computed one at a time, which "
            f"--plugin {backend.name} cannot; use ddp or zero2, or prepare the data with --documents-per-row 1."
        )
    with pytest.raises(UserError, match=r"MambaBlock.*--documents-per-row 1"):
        packing.check_rows(
            packing.Way("eager", False, state="MambaBlock"), registry.find("native"), 512, 2, tell=False
        )
    growing = packing.Way(NAMES["sdpa"], growing=256, kind="dynamic")
    packing.check_rows(growing, registry.find("native"), 256, 2, tell=False)
    with pytest.raises(UserError, match="--max-length 256"):
        packing.check_rows(growing, registry.find("native"), 512, 2, tell=False)


def test_a_training_says_which_class_takes_documents_one_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A warning where it costs time, nothing where a row has one document, a refusal under a plugin that cannot."""
    saved(tmp_path, *ONE_BY_ONE["bloom"])
    capsys.readouterr()  # transformers has its progress bar there
    vocabulary = Vocabulary(BASE["vocab_size"], BASE["vocab_size"], BASE["vocab_size"])

    def build(plugin: str, documents_per_row: int, processes: int = 1) -> str:
        flags = {"plugin": plugin, "mixed_precision": "fp32"}
        config = TrainOptions(model=tmp_path, data=[tmp_path], output=tmp_path / "run", **flags)
        world = World(0, processes, 0, processes)
        build_engine(config, ModelDirectory(tmp_path), vocabulary, 2, CPU, world, 64, documents_per_row)
        return capsys.readouterr().err

    warning = build("native", 5)
    assert "warning: " in warning
    assert "BloomAttention" in warning or "BloomForCausalLM" in warning
    assert "one document at a time" in warning
    assert "up to 5 forward passes" in warning
    assert not build("native", 1)
    with pytest.raises(
        UserError, match=r"Bloom\w+ is not .* --plugin fsdp cannot; use ddp or zero2, or prepare"
    ):
        build("fsdp", 5, processes=2)
