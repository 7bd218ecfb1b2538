"""Small tokenizers of every kind, trained here on texts written here."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

ENGLISH = [
    "The cat sat on the mat and looked at the other cats in the garden.",
    "There is nothing in this house that the old man had not made himself.",
    "She was reading a letter when the train came into the station at last.",
    "def read(path):\n    return open(path).read()  # the whole file, as text",
    "In the year 1998 they counted 12,345 birds, and 678 of them had rings.",
    "What the others thought of that, nobody at the table wanted to say then.",
] * 20
CHINESE = [
    "今天天气很好,我们一起去公园散步。",
    "我们的国家有很长的历史,也有很多城市。",
    "他今天没有来,因为他的母亲身体不好。",
    "这本书很有意思,我们都喜欢看这本书。",
    "春天来了,公园里的花都开了,天气很好。",
] * 20


def sentencepiece_model(
    directory: Path, kind: str = "bpe", texts: Iterable[str] = ENGLISH, **options: Any
) -> Path:
    """A directory with a `tokenizer.model` trained on `texts`."""
    settings: dict[str, Any] = {
        "model_type": kind,
        "vocab_size": 500,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "hard_vocab_limit": False,
        "allow_whitespace_only_pieces": True,
        "minloglevel": 2,
        **options,
    }
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, **settings)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    return directory


def byte_level(
    directory: Path,
    texts: Iterable[str] = ENGLISH,
    size: int = 500,
    patterns: Iterable[str] = (),
    use_regex: bool = True,
    add_prefix_space: bool = False,
    normalizer: Any = None,
    added: Iterable[str] = (),
    **model: Any,
) -> Path:
    """A directory with the `tokenizer.json` of a byte-level tokenizer trained on `texts`: GPT-2-like if no more is said.

    `patterns` cut before the byte level, `added` are added tokens that are not special, `model` is put into the model.
    """
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    level = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex and not splits)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, level]) if splits else level
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    end = AddedToken("<|endoftext|>", special=True, normalized=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(content, special=False, normalized=False) for content in added])
    definition = json.loads(tokenizer.to_str())
    definition["model"] |= model
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(definition, ensure_ascii=False), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", '
        '"chat_template": "{{ messages }}"}'
    )
    return directory


def word_piece(directory: Path) -> Path:
    """A directory with a tokenizer of a kind that llmforge refuses."""
    directory.mkdir(parents=True, exist_ok=True)
    Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).save(
        str(directory / "tokenizer.json")
    )
    return directory
