"""Data sets by their name on the Hub: without a connection, what was fetched is read, and the rest is one sentence."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmforge.corpus.hub import local_path
from llmforge.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where data sets of the Hub are kept; nothing is asked of it."""
    from huggingface_hub import constants

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache/llmforge/datasets"


@pytest.mark.parametrize(
    "name", ["org/name", "org/name:train", "org/name@v1:en:test[:5]", f"org/name@{COMMIT}"]
)
@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_and_not_fetched_is_one_sentence(
    cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, variable: str
) -> None:
    from huggingface_hub import constants

    if variable == "HF_DATASETS_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv(variable, "1")
    with pytest.raises(
        UserError, match=f"is not a path, and is not in the cache .*; {variable} is set"
    ) as refused:
        local_path(name)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(name)
    assert not cache.exists()


def test_offline_what_was_fetched_before_is_read(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshots = cache / "datasets--org--name/snapshots"
    (snapshots / COMMIT).mkdir(parents=True)
    file = snapshots / COMMIT / "default-train.jsonl"
    file.write_text('{"text": "the end"}\n')
    (snapshots / ("f" * 40)).mkdir()
    assert local_path("org/name") == local_path(f"org/name@{COMMIT}:train") == file
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    for other in ("org/name:test", "org/name@v1", "org/name@" + "f" * 40, "org/name:en:train"):
        with pytest.raises(UserError, match="is not in the cache"):
            local_path(other)
    (snapshots / ("f" * 40) / "default-train.jsonl").write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="is not in the cache"):  # which of the two commits?
        local_path("org/name")


def test_a_hub_that_does_not_answer_is_one_sentence(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, hf_api

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hf_api.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"the Hub cannot be reached .*: check the path") as refused:
        local_path("org/name")
    assert "\n" not in str(refused.value)


def test_a_command_offline(llmforge: Callable[..., Any], tmp_path: Path, tiny_tokenizer: Path) -> None:
    done = llmforge(
        *("learn-pieces", "--source-tokenizer-dir", tiny_tokenizer, "--corpus", "org/name:train"),
        *("--num-pieces", 5, "--output", tmp_path / "pieces.jsonl"),
        code=1,
        **{**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HF_DATASETS_OFFLINE": "1"},
    )
    assert done.stderr.startswith("error: org/name:train is not a path")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
