"""What ColossalAI's plugins cannot do is a sentence that names the flag and what can, before a model is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmforge.backends import registry
from llmforge.backends.colossalai import rules
from llmforge.errors import UsageError, UserError
from llmforge.options import make
from llmforge.train.options import TrainOptions
from llmforge.weights.directory import ModelDirectory

HYBRID = {"plugin": "3d", "gradient_accumulation_steps": 4}


def configured(**flags: Any) -> TrainOptions:
    values = {"model": Path("m"), "data": [Path("d")], "output": Path("s"), **flags}
    return make(TrainOptions, values)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"plugin": "gemini", "tp": 2}, "--tp 2 contradicts --plugin gemini: .*wrong gradients.*use 3d"),
        ({"plugin": "zero2", "pp": 2}, "--pp 2 contradicts --plugin zero2; use 3d"),
        ({"plugin": "ddp", "sp": 2}, "--sp 2 contradicts --plugin ddp; use 3d"),
        ({"plugin": "zero1", "zero": 1}, "--zero 1 contradicts --plugin zero1"),
        (
            {"plugin": "zero1", "pipeline_micro_batch_size": 1},
            "--pipeline-micro-batch-size goes with --plugin 3d",
        ),
        (
            {"plugin": "zero2", "sp_mode": "all_to_all"},
            "--sp-mode all_to_all contradicts --plugin zero2; use 3d",
        ),
        ({"plugin": "ddp", "rehearse": True}, "--rehearse contradicts --plugin ddp"),
        ({"plugin": "zero2", "compile": True}, "--compile contradicts --plugin zero2; use ddp or fsdp"),
        ({"plugin": "gemini", "trainable": "lora", "lora_rank": 2}, "contradicts --plugin gemini; use zero2"),
        (
            {"plugin": "zero2", "trainable": "lora,new-embeddings", "lora_rank": 2},
            "new-embeddings contradicts --plugin zero2; use native",
        ),
        (
            {"plugin": "zero2", "trainable": "lora", "lora_rank": 2, "dora": True},
            "--dora contradicts --plugin zero2; use native",
        ),
        (
            {"plugin": "gemini", "mixed_precision": "fp32"},
            "fp32 contradicts --plugin gemini; use zero2 or 3d",
        ),
        (
            {"plugin": "zero2", "rehearse": True, "attention": "flex"},
            "--attention flex contradicts --rehearse",
        ),
        ({**HYBRID, "zero": 2, "pp": 2}, "--zero 2 contradicts --pp 2"),
        ({**HYBRID, "zero": 3}, "--zero 3: must be 0, 1 or 2"),
        ({**HYBRID, "zero": 1, "mixed_precision": "fp32"}, "--zero 1 contradicts --mixed-precision fp32"),
        (
            {**HYBRID, "tp": 2, "sp_mode": "ring"},
            "--sp-mode ring gives wrong gradients.*use --sp-mode all_to_all",
        ),
        ({**HYBRID, "sp": 2, "sp_mode": "ring_attn"}, "--sp-mode ring_attn cannot keep documents apart"),
        ({**HYBRID, "sp_mode": "split_gather"}, "give --tp 2 or more"),
        (
            {**HYBRID, "tp": 2, "sp": 2, "sp_mode": "split_gather"},
            "--sp 2 contradicts --sp-mode split_gather",
        ),
        ({**HYBRID, "sp_mode": "all_to_all"}, "--sp-mode all_to_all needs --sp 2 or more"),
        ({**HYBRID, "pipeline_micro_batch_size": 2}, "--pipeline-micro-batch-size goes with --pp"),
        (
            {"plugin": "3d", "pp": 4},
            "--pp 4 needs at least as many micro-batches.*--gradient-accumulation-steps to 2",
        ),
        (
            {**HYBRID, "pp": 2, "pipeline_micro_batch_size": 3},
            "--pipeline-micro-batch-size 3 does not divide the 8 rows",
        ),
        ({"padding_mode": "longest"}, "--padding-mode longest contradicts packed rows"),
    ],
)
def test_flags_that_contradict_are_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        configured(**flags)


@pytest.fixture
def about(tmp_path: Path) -> Any:
    """`about(vocab_size=100)` is a directory with the configuration of a LLaMA of 8 heads and 4 layers."""

    def write(**values: Any) -> Path:
        sizes = {
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "num_hidden_layers": 4,
            "vocab_size": 512,
        }
        text = json.dumps({"architectures": ["LlamaForCausalLM"], **sizes, **values})
        (tmp_path / "config.json").write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("flags", "values", "words"),
    [
        ({"tp": 3}, {}, "--tp 3 does not divide the 8 attention heads"),
        ({"tp": 8}, {}, "--tp 8 does not divide the 4 key-value heads"),
        ({"sp": 3}, {}, "^--sp 3 does not divide the 8 attention heads"),
        ({"tp": 2, "sp": 4}, {}, "^--tp 2 x --sp 4 does not divide the 4 key-value heads"),
        ({"pp": 8}, {}, "--pp 8 has more stages than .* layers"),
        (
            {"tp": 2},
            {"vocab_size": 576},
            "multiple of 128, and .* 576 rows; resize it with llmforge init-model --tp 2",
        ),
        ({}, {"vocab_size": 32000 + 1}, "multiple of 64"),
        (
            {},
            {"architectures": ["Qwen2ForCausalLM"]},
            "runs LLaMA models, and .* Qwen2ForCausalLM; use zero2",
        ),
        ({"sp": 4}, {}, "4 ranks cannot share rows of 50 tokens"),
    ],
)
def test_models_that_do_not_fit_are_refused(about: Any, flags: Any, values: Any, words: str) -> None:
    config = configured(plugin="3d", gradient_accumulation_steps=8, **flags)
    with pytest.raises(UserError, match=words):
        registry.find("3d").check_model(config, ModelDirectory(about(**values)), 48, 50)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"tp": 4}, "--tp 4 needs a multiple of 4 processes, but 6 were started."),
        ({"tp": 2, "pp": 2}, "--tp 2 x --pp 2 needs a multiple of 4 processes, but 6 were started."),
        ({"pp": 2, "sp": 2}, "--pp 2 x --sp 2 needs a multiple of 4 processes, but 6 were started."),
    ],
)
def test_processes_that_cannot_be_divided_are_refused(about: Any, flags: Any, words: str) -> None:
    """Only factors that were given are named."""
    with pytest.raises(UsageError) as error:
        registry.find("3d").check_model(
            configured(plugin="3d", gradient_accumulation_steps=4, **flags), ModelDirectory(about()), 6, 48
        )
    assert str(error.value) == words


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    versions = {"colossalai": "0.5.0", "transformers": "4.51.3"}
    monkeypatch.setattr(rules, "version", versions.__getitem__)
    rehearsed = configured(plugin="zero2", rehearse=True)
    registry.find("zero2").check_environment(rehearsed, False)
    with pytest.raises(UserError, match="needs GPUs, and this machine has none; --rehearse"):
        registry.find("zero2").check_environment(configured(plugin="zero2"), False)
    versions["transformers"] = "4.52.0"
    with pytest.raises(UserError, match=r"does not run with 4\.52\.0"):
        registry.find("zero2").check_environment(rehearsed, False)

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(rules, "version", missing)
    with pytest.raises(UserError, match="needs ColossalAI: pip install"):
        registry.find("zero2").check_environment(rehearsed, False)
