"""A model directory as one object: each file is read once, and what it says is what the functions of paths say."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llmforge.errors import UserError
from llmforge.weights.config import load_config, read_config
from llmforge.weights.directory import ModelDirectory
from llmforge.weights.vocabulary import vocabulary


def test_what_was_read_stays_when_the_directory_goes(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    path = tiny_model()
    model = ModelDirectory(path)
    stated, config, rows = read_config(path), load_config(path), vocabulary(path)
    assert model.stated == stated
    assert model.config.to_dict() == config.to_dict()
    assert model.vocabulary == rows
    fingerprint, tensors = model.tokenizer.fingerprint, list(model.weights.tensors)
    shutil.rmtree(path)
    assert (model.stated, model.vocabulary) == (stated, rows)
    assert model.config.to_dict() == config.to_dict()
    assert (model.tokenizer.fingerprint, list(model.weights.tensors)) == (fingerprint, tensors)


def test_a_model_that_training_does_not_support_is_refused_by_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    assert ModelDirectory(tmp_path).stated == {"model_type": "t5"}
    with pytest.raises(UserError, match="is not a decoder-only model"):
        _ = ModelDirectory(tmp_path).config
