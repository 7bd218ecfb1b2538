"""Texts of every kind and in every state: each command reads them alike, what is not read is named, nothing hangs."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from llmforge.corpus import Reader, ReadOptions
from llmforge.corpus.hub import local_path
from llmforge.data.forecast import forecast
from llmforge.data.options import PrepareOptions
from llmforge.data.prepare import prepare_data
from llmforge.errors import UserError

DOLMA = [
    {"id": str(i), "text": f"Document {i} tells of the sea and the hills.", "source": "common-crawl"}
    for i in range(12)
]
PAIRS = [
    {"source": f"{i}: what did the {word} say about the {i} hills? ", "text": "nothing"}
    for i, word in enumerate(["sea", "cat", "rat"] * 5)
]
Prepare = Callable[..., dict[str, Any]]


def jsonl(path: Path, records: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def prepare(tmp_path: Path, tiny_tokenizer: Path) -> Prepare:
    """`prepare(input, ..., source_field="")` runs prepare-data and gives its ledger."""

    def run(*inputs: Path, max_rejected: float = 0.01, name: str = "out", **reading: Any) -> dict[str, Any]:
        finished = prepare_data(
            options(tmp_path / name, tiny_tokenizer, *inputs, max_rejected=max_rejected, **reading)
        )
        ledger: dict[str, Any] = finished.manifest.metrics["ledger"]
        return ledger

    return run


def options(
    output: Path, tokenizer: Path, *inputs: Path, max_rejected: float = 0.01, **reading: Any
) -> PrepareOptions:
    return PrepareOptions(
        list(inputs),
        tokenizer,
        output,
        max_length=64,
        bins=1,
        workers=1,
        max_rejected=max_rejected,
        overwrite=True,
        reading=ReadOptions(**reading),
    )


@pytest.mark.parametrize("files", [1, 4])
def test_a_source_that_names_the_corpus_is_said_by_every_command(
    prepare: Prepare, tmp_path: Path, tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str], files: int
) -> None:
    """Also where no file by itself has enough documents to tell, and beside sources that are texts."""
    for i in range(files):
        jsonl(tmp_path / f"in/{i}.jsonl", DOLMA[i::files])
    jsonl(tmp_path / "in/pairs.jsonl", PAIRS[:1])
    remark = "--source-field"
    prepare(tmp_path / "in")
    assert capsys.readouterr().err.count(remark) == 1
    ledger = prepare(tmp_path / "in", source_field="")
    assert remark not in capsys.readouterr().err
    assert ledger["written"]["documents"] == 13
    forecast(options(tmp_path / "none", tiny_tokenizer, tmp_path / "in"))
    assert capsys.readouterr().err.count(remark) == 1
    list(Reader([tmp_path / "in/0.jsonl"], ReadOptions()).documents())
    assert (remark in capsys.readouterr().err) == (files == 1)


def test_sources_that_are_texts_are_not_remarked_on(
    prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(jsonl(tmp_path / "in.jsonl", PAIRS))
    assert "--source-field" not in capsys.readouterr().err


def test_a_number_as_source_is_counted_with_its_remedy(prepare: Prepare, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "in.jsonl", [{"text": "the end", "source": i} for i in range(12)])
    with pytest.raises(UserError, match=r"12 of 12 .*'source' is not text .--source-field"):
        prepare(file)
    assert prepare(file, source_field="")["written"]["documents"] == 12


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
        UserError, match=f"does not exist as a path, and was not fetched to .*; {variable} is set"
    ) as refused:
        local_path(name)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(name)
    assert not cache.exists()


def test_offline_what_was_fetched_before_is_read(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshots = cache / "datasets--org--name/snapshots"
    file = jsonl(snapshots / COMMIT / "default-train.jsonl", DOLMA)
    (snapshots / ("f" * 40)).mkdir()
    assert local_path("org/name") == local_path(f"org/name@{COMMIT}:train") == file
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    for other in ("org/name:test", "org/name@v1", "org/name@" + "f" * 40, "org/name:en:train"):
        with pytest.raises(UserError, match="was not fetched"):
            local_path(other)
    jsonl(snapshots / ("f" * 40) / "default-train.jsonl", DOLMA)
    with pytest.raises(UserError, match="was not fetched"):  # which of the two commits?
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
    assert done.stderr.startswith("error: org/name:train does not exist as a path")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
