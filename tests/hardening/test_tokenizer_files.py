"""Tokenizer files of a wrong shape: a sentence that names file and field, quickly, and never a traceback."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llmforge.errors import UserError
from llmforge.tokenizer import load

WRONG = (None, True, -1, 10**9, 10**30, 1.5, "text", "\ud800", [[]], {"a": 1}, [None])
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=270, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat"] * 9, trainer)
    value: dict[str, Any] = json.loads(tokenizer.to_str())
    value["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    return value


def refused_or_used(directory: Path) -> str:
    """The sentence with which `directory` is refused, "" if it is used; anything else fails, and so does a wait."""
    began = time.process_time()
    sentence = ""
    try:
        load(directory).encode(["the cat 天气"])
    except UserError as error:
        sentence = str(error)
    assert time.process_time() - began < 20
    assert not sentence or str(directory) in sentence
    return sentence


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON value can be changed; of long lists and objects the first and the last."""
    found = [path] if path else []
    keys = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    )
    for key in keys if len(keys) < 20 else (keys[0], keys[-1]):
        found += places(value[key], (*path, key))
    return found


def changed(
    value: dict[str, Any], place: tuple[Any, ...], wrong: Any, remove: bool = False
) -> dict[str, Any]:
    copied: Any = json.loads(json.dumps(value))
    inner = copied
    for key in place[:-1]:
        inner = inner[key]
    if remove:
        del inner[place[-1]]
    else:
        inner[place[-1]] = wrong
    return copied  # type: ignore[no-any-return]


def test_every_field_of_tokenizer_json_may_be_wrong(whole: dict[str, Any], tmp_path: Path) -> None:
    for place in places(whole):
        for wrong in WRONG:
            (tmp_path / "tokenizer.json").write_text(json.dumps(changed(whole, place, wrong)))
            refused_or_used(tmp_path)
        (tmp_path / "tokenizer.json").write_text(json.dumps(changed(whole, place, None, remove=True)))
        refused_or_used(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_every_field_of_the_configuration_may_be_wrong(
    name: str, whole: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    token = {"content": "<|end|>", "special": True, "lstrip": False}
    config: dict[str, Any] = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": token,
        "eos_token": "<|end|>",
        "added_tokens_decoder": {"0": token},
        "additional_special_tokens": ["<|end|>"],
        "extra_special_tokens": {"image_token": "<|end|>"},
        "add_bos_token": True,
        "add_prefix_space": False,
        "auto_map": {"AutoTokenizer": ["a.B", None]},
    }
    for place in places(config):
        for wrong in WRONG:
            (tmp_path / name).write_text(json.dumps(changed(config, place, wrong)))
            refused_or_used(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "config.json",
    ],
)
def test_json_that_is_too_deep_or_none(name: str, whole: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    for text in (DEEP.encode(), b"", b"[]", b"\xff\xfe", b'{"a": ' + b"1" * 5000 + b"}", b"{"):
        (tmp_path / name).write_bytes(text)
        assert name in refused_or_used(tmp_path)


@pytest.mark.parametrize(
    ("component", "value", "field"),
    [
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "precompiled_charsmap"),
        ("normalizer", {"type": "Wrong"}, "normalizer.type"),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [None]}, "pretokenizers[0]"),
        (
            "pre_tokenizer",
            {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
            "",
        ),
        ("decoder", {"type": "Sequence", "decoders": {}}, "decoder.decoders"),
    ],
)
def test_components_are_named(
    component: str, value: Any, field: str, whole: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({**whole, component: value}))
    sentence = refused_or_used(tmp_path)
    assert sentence
    assert field in sentence


def test_a_regular_expression_beyond_its_limits(whole: dict[str, Any], tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    parts = {"type": "Sequence", "pretokenizers": [split, whole["pre_tokenizer"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**whole, "pre_tokenizer": parts}))
    tokenizer = load(tmp_path)
    with pytest.raises(UserError, match="cannot be read or used"):
        tokenizer.encode(["x" * 200])


def test_one_flipped_byte_of_a_sentencepiece_model(tmp_path: Path) -> None:
    model = trained()
    chance = random.Random(0)
    for _ in range(80):
        damaged = bytearray(model)
        damaged[chance.randrange(len(model))] ^= 1 << chance.randrange(8)
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        refused_or_used(tmp_path)


def test_rank_files_of_a_wrong_shape(tmp_path: Path) -> None:
    for text in (
        b"AA== 0\n",
        b"AA== 0\nAA== 1\n",
        b"AA== 5000000000\n",
        b"AA== x\n",
        b"AA== 0\n\xff\n",
        b"AA== 0\nAQ== 0\n",
    ):
        (tmp_path / "x.tiktoken").write_bytes(text)
        assert "x.tiktoken" in refused_or_used(tmp_path)
    (tmp_path / "x.tiktoken").unlink()
    config = {"default_num_special_tokens": 2, "default_vocab_size": 258, "pattern": "."}
    vocab = [{"rank": 0, "token_bytes": "AA==", "token_str": None}]
    for place in places({"config": config, "vocab": vocab, "special_tokens": None}):
        for wrong in WRONG:
            value = changed({"config": config, "vocab": vocab, "special_tokens": None}, place, wrong)
            (tmp_path / "tekken.json").write_text(json.dumps(value))
            assert "tekken.json" in refused_or_used(tmp_path)


def test_vocabulary_files_of_a_wrong_shape(whole: dict[str, Any], tmp_path: Path) -> None:
    model = whole["model"]
    good = json.dumps(model["vocab"])
    for vocab in ("[]", "{}", '{"a": "b"}', '{"a": 0, "b": 0}', '{"a": 1000000000, "Ġ": 0}', good):
        for merges in (b"", b"a\n", b"a b c\n", b"\xff\n", b"zz zz\n"):
            (tmp_path / "vocab.json").write_text(vocab)
            (tmp_path / "merges.txt").write_bytes(merges)
            refused_or_used(tmp_path)


def trained() -> bytes:
    import io

    out = io.BytesIO()
    texts = ["the cat sat on the mat and then the rat ate the hat"] * 20
    options: dict[str, Any] = {
        "vocab_size": 300,
        "byte_fallback": True,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    train: Callable[..., None] = sentencepiece.SentencePieceTrainer.train
    train(sentence_iterator=iter(texts), model_writer=out, model_type="bpe", **options)
    return out.getvalue()
