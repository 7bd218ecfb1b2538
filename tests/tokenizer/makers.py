"""Small tokenizers of every kind, trained here on texts written here."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

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


def byte_level(directory: Path, texts: Iterable[str] = ENGLISH, size: int = 500) -> Path:
    """A directory with the `tokenizer.json` of a GPT-2-like tokenizer trained on `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = AddedToken("<|endoftext|>", special=True, normalized=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
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
