"""One small tokenizer of each family for the whole session; tests only read them."""

from pathlib import Path

import pytest

from . import makers


@pytest.fixture(scope="session")
def sentencepiece_bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return makers.sentencepiece_model(tmp_path_factory.mktemp("tokenizers") / "bpe")


@pytest.fixture(scope="session")
def sentencepiece_unigram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return makers.sentencepiece_model(tmp_path_factory.mktemp("tokenizers") / "unigram", "unigram")


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return makers.byte_level(tmp_path_factory.mktemp("tokenizers") / "bytes")
