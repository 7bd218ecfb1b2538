"""Small tokenizers with and without a token before each text, and what the tests of this room do again and
again.
"""

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from llmforge.dataset.options import PrepareOptions
from llmforge.dataset.prepare import prepare_data
from llmforge.steps import Finished
from llmforge.tokenizer.bytelevel import byte_to_character

TEXTS = [
    "The cat sat on the mat and looked at the other cats in the garden.",
    "def read(path):\n    return open(path).read()  # the whole file, as text",
    "今天天气很好,我们一起去公园散步。这本书很有意思,我们都喜欢看这本书。",
    "In the year 1998 they counted 12,345 birds, and 678 of them had rings.",
] * 20


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's kind: nothing before a text, `<|endoftext|>` after a document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken("<|endoftext|>", special=True, normalized=False)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    directory = tmp_path_factory.mktemp("tokenizers") / "bytes"
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return directory


@pytest.fixture(scope="session")
def single_digits(tmp_path_factory: pytest.TempPathFactory, byte_level: Path) -> Path:
    """SmolLM2's kind: every digit by itself, no pieces for some bytes."""
    definition = json.loads((byte_level / "tokenizer.json").read_text())
    definition["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, definition["pre_tokenizer"]],
    }
    for byte in (0xC0, 0x04):
        del definition["model"]["vocab"][byte_to_character()[byte]]
    directory = tmp_path_factory.mktemp("tokenizers") / "digits"
    directory.mkdir()
    (directory / "tokenizer.json").write_text(json.dumps(definition))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return directory


@pytest.fixture(scope="session")
def llama_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaMA's kind: sentencepiece BPE with byte fallback, `<s>` before and `</s>` after a document."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    directory = tmp_path_factory.mktemp("tokenizers") / "pieces"
    directory.mkdir()
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    return directory


@pytest.fixture
def prepare(tmp_path: Path, byte_level: Path) -> Callable[..., Finished]:
    """`prepare(input, ..., name="out", max_length=64)` runs prepare-data in this process, or in `workers`."""

    def run(*inputs: Path, name: str = "out", tokenizer: Path = byte_level, **options: Any) -> Finished:
        defaults: dict[str, Any] = {"max_length": 64, "bins": 3, "workers": 1}
        return prepare_data(
            PrepareOptions(list(inputs), tokenizer, tmp_path / name, **{**defaults, **options})
        )

    return run


def write_jsonl(path: Path, records: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8"
    )
    return path


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a step directory but its manifest, which holds the time."""
    return {
        file.relative_to(directory).as_posix(): file.read_bytes()
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file.name != "llmforge.json"
    }
