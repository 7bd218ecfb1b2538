"""Texts of every kind and in every state: each command reads them alike, what is not read is named, nothing hangs."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from llmforge.corpus import Reader, ReadOptions
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
