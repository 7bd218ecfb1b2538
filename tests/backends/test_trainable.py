"""The words of --trainable."""

import pytest

from llmforge.backends.common.trainable import Trainable, parse
from llmforge.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", Trainable(everything=True)),
        ("lora", Trainable(lora=True)),
        (" new-embeddings,lora", Trainable(lora=True, embeddings=True, new_rows_only=True)),
        ("embeddings", Trainable(embeddings=True)),
        ("new-embeddings", Trainable(embeddings=True, new_rows_only=True)),
        ("0-3,28-", Trainable(layers=((0, 4), (28, None)))),
        ("-2, embeddings ,7", Trainable(embeddings=True, layers=((0, 3), (7, 8)))),
    ],
)
def test_words_are_read(text: str, expected: Trainable) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "all,lora",
        "all,0-3",
        "3-1",
        "-",
        "head",
        "embeddings,new-embeddings",
        "1-2-3",
        "lora,embeddings",
        "lora,lora",
    ],
)
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--trainable"):
        parse(text)
