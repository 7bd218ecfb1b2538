"""Classes of transformers 5 that pass over the normalizer and pre-tokenizer of a `tokenizer.json`."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmforge.tokenizer import load
from llmforge.tokenizer.formats.rebuilt import STEPS, steps

from . import makers


@pytest.mark.parametrize("name", STEPS)
def test_the_steps_are_those_that_transformers_makes(name: str) -> None:
    import transformers

    made = getattr(transformers, name)()
    found = steps(json.loads(made.backend_tokenizer.to_str()))
    assert [
        {key: step.get(key) for key in known} for step, known in zip(found, STEPS[name], strict=True)
    ] == STEPS[name]


def a_tokenizer(directory: Path, change: dict[str, Any], **config: Any) -> Path:
    makers.byte_level(directory)
    file = directory / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", **config}))
    return directory


NFC = {"normalizer": {"type": "NFC"}}


@pytest.mark.parametrize(
    ("change", "name", "model_type", "said"),
    [
        ({}, "GPT2Tokenizer", None, False),
        ({}, "GPT2TokenizerFast", "gpt2", False),
        (NFC, "GPT2TokenizerFast", "gpt2", True),
        (NFC, "GPT2TokenizerFast", None, True),
        (NFC, "GPT2TokenizerFast", "llama", False),  # of whose class it is not
        (NFC, "PreTrainedTokenizerFast", "gpt2", False),
        (NFC, "GPTNeoXTokenizer", "gpt_neox", False),
        ({}, "GPTNeoXTokenizer", "gpt_neox", True),
        ({}, "Qwen2Tokenizer", "qwen2", True),
        ({}, "LlamaTokenizerFast", "llama", False),  # byte-level, as Llama 3 and DeepSeek
    ],
)
def test_other_words_in_transformers_5_are_said(
    tmp_path: Path,
    change: Any,
    name: str,
    model_type: str | None,
    said: bool,
    capfd: pytest.CaptureFixture[str],
) -> None:
    directory = a_tokenizer(tmp_path / "t", change, tokenizer_class=name)
    if model_type:
        (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    load(directory)
    assert ("transformers 5 builds the normalizer" in capfd.readouterr().err) is said
