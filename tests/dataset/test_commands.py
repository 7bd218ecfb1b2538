"""The installed commands: Colossal-LLaMA's options, estimates, inspection, one-sentence errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmforge.dataset.forecast import forecast
from llmforge.dataset.inspection import inspect_dataset
from llmforge.dataset.inspection_text import as_text
from llmforge.dataset.options import PrepareOptions, parse_count, parse_mix, parse_shard, parse_share
from llmforge.dataset.packed import PackedDataset
from llmforge.errors import UsageError
from llmforge.tokenizer import load

from .conftest import write_jsonl
from .test_prepare import corpus

Prepare = Callable[..., Any]


def test_colossal_llamas_command_works_as_it_is(llmforge: Any, tmp_path: Path, byte_level: Path) -> None:
    write_jsonl(tmp_path / "zh/x.jsonl", corpus(50))
    write_jsonl(tmp_path / "en/x.jsonl", corpus(50, seed=1))
    llmforge(
        "prepare-data",
        "--data_input_dirs", f"{tmp_path}/zh,{tmp_path}/en",
        "--tokenizer_dir", byte_level,
        "--data_cache_dir", tmp_path / "cache",
        "--data_jsonl_output_dir", tmp_path / "jsonl",
        "--data_arrow_output_dir", tmp_path / "arrow",
        "--max_length", 128,
        "--num_spliced_dataset_bins", 3,
    )  # fmt: skip
    parts = sorted(path.name for path in (tmp_path / "arrow").glob("part-*"))
    assert parts == ["part-00000", "part-00001", "part-00002"]
    dataset = PackedDataset([tmp_path / "arrow"])
    lines = [
        json.loads(line)
        for path in sorted((tmp_path / "jsonl").glob("part-*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert [line["input_ids"] for line in lines] == [
        r.input_ids.tolist() for r in dataset.rows(range(len(dataset)))
    ]
    assert set(lines[0]) == {"input_ids", "labels", "seq_lengths", "seq_categories", "seq_bytes"}


def test_a_command_from_the_command_line(llmforge: Any, tmp_path: Path, byte_level: Path) -> None:
    write_jsonl(tmp_path / "corpus/zh/x.jsonl", [{"body": "公园 天气" * 9, "lang": "zh"}] * 60)
    words = ["prepare-data", "--data-input-dirs", tmp_path / "corpus", "--tokenizer-dir", byte_level]
    words += ["--text-field", "body", "--category-field", "lang", "--holdout", "5%", "--max-tokens", "1K"]
    forecasted = json.loads(
        llmforge(*words, "--data-output-dirs", tmp_path / "out", "--dry-run", "--json").stdout
    )
    assert forecasted["tokens"] == 1000
    assert not (tmp_path / "out").exists()
    done = llmforge(*words, "--data-output-dirs", tmp_path / "out", "--json")
    shown = json.loads(done.stdout)
    assert shown["metrics"]["ledger"]["categories"]["zh"]["read"]["documents"] == 60
    assert "encoding with gigatoken" in done.stderr
    assert "already done" in llmforge(*words, "--data-output-dirs", tmp_path / "out").stdout
    assert (
        "--packing best: must be one of"
        in llmforge(*words, "--data-output-dirs", tmp_path / "o", "--splice", "best", code=2).stderr
    )
    assert "both name the output" in llmforge(*words, code=2).stderr
    assert (
        "does not exist"
        in llmforge(*words, "--data-output-dirs", tmp_path / "o", "--blocklist", "nowhere", code=1).stderr
    )


def test_the_forecast_is_close(prepare: Prepare, tmp_path: Path, byte_level: Path) -> None:
    write_jsonl(tmp_path / "in/x.jsonl", corpus(3000))
    options = PrepareOptions(
        [tmp_path / "in"], byte_level, tmp_path / "out", max_length=64, bins=3, workers=1
    )
    expected = forecast(options)
    metrics = prepare(tmp_path / "in").manifest.metrics
    assert expected["tokens"] == pytest.approx(metrics["tokens"], rel=0.05)
    assert expected["rows"] == pytest.approx(metrics["rows"], rel=0.05)
    arrow = sum(file.stat().st_size for file in (tmp_path / "out/arrow").rglob("*.arrow"))
    assert expected["output_bytes"] == pytest.approx(arrow, rel=0.15)


def test_the_inspection_counts_every_row_and_shows_masks(
    llmforge: Any, tmp_path: Path, llama_like: Path, prepare: Prepare
) -> None:
    records: list[dict[str, str]] = [*corpus(40), {"source": "甲乙", "target": "丙丁 <b>", "category": "qa"}]
    write_jsonl(tmp_path / "in/x.jsonl", records)
    output = prepare(tmp_path / "in", tokenizer=llama_like).output
    words = ["inspect-data", output, "--tokenizer-dir", llama_like, "--samples", 1000]
    found = json.loads(llmforge(*words, "--json").stdout)
    dataset = PackedDataset([output])
    assert (found["rows"], found["tokens"]) == (len(dataset), dataset.tokens)
    assert sum(found["lengths"].values()) == sum(
        len(r.seq_lengths) for r in dataset.rows(range(len(dataset)))
    )
    assert {n for bucket in found["buckets"] for n in bucket["categories"]} == {"a", "b", "qa"}
    text = llmforge(*words).stdout
    assert "甲乙⟧" in text
    assert "丙丁 <b></s>" in text
    llmforge(*words, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "甲乙</s>丙丁 &lt;b&gt;" in page
    assert "not the tokenizer" not in page
    assert "samples are ids" not in text + page
    assert "samples are ids; --tokenizer" in llmforge("inspect-data", output).stdout
    assert "error: " in llmforge("inspect-data", tmp_path / "in", code=1).stderr


def test_one_document_per_row(llmforge: Any, tmp_path: Path, byte_level: Path) -> None:
    """A row is one document or a part of one, no token is lost, and manifest and inspection say so."""
    write_jsonl(tmp_path / "in/x.jsonl", corpus(40))
    words = ["prepare-data", "--data-input-dirs", tmp_path / "in", "--tokenizer-dir", byte_level]
    words += ["--max-length", 64, "--num-spliced-dataset-bins", 2, "--data-output-dirs", tmp_path / "out"]
    refused = llmforge(*words, "--documents-per-row", 1, "--splice", "concat", code=2)
    assert "--packing concat puts several documents into a row" in refused.stderr
    options = PrepareOptions(
        [tmp_path / "in"], byte_level, tmp_path / "other", max_length=64, documents_per_row=1, workers=1
    )
    forecasted = forecast(options)
    done = json.loads(llmforge(*words, "--documents-per-row", 1, "--json").stdout)
    ledger, dataset = done["metrics"]["ledger"], PackedDataset([tmp_path / "out"])
    rows = dataset.rows(range(len(dataset)))
    lengths = [len(load(byte_level).encode([one["target"]])[0]) + 1 for one in corpus(40)]
    assert ledger["written"] == ledger["read"] == {"documents": 40, "tokens": sum(lengths)}
    assert sum(len(row.input_ids) for row in rows) == sum(lengths)
    assert all(len(row.seq_lengths) == 1 for row in rows)
    assert len(rows) == forecasted["rows"] == sum(-(-length // 64) for length in lengths)
    manifest = json.loads((tmp_path / "out/llmforge.json").read_text())
    assert manifest["arguments"]["documents_per_row"] == 1
    found = inspect_dataset([tmp_path / "out"])
    assert found["documents_per_row"] == 1
    assert "at most 64 tokens and one document, " in as_text(found)
    assert "documents_per_row" in llmforge(*words, code=1).stderr


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (lambda t: parse_share("--holdout", t), "0.5%", 0.005),
        (lambda t: parse_share("--holdout", t), "0.02", 0.02),
        (lambda t: parse_count("--max-tokens", t), "1.5B", 1_500_000_000),
        (lambda t: parse_count("--max-tokens", t), "2e6", 2_000_000),
        ((lambda t: parse_shard("--shard", t)), "3/4", (3, 4)),
        (lambda t: parse_mix("--mix", t.split(",")), "zh=0.7,en=0.3", {"zh": 0.7, "en": 0.3}),
        (lambda t: parse_mix("--mix", t.split(",")), "a=b=1", {"a=b": 1.0}),
    ],
)
def test_values_of_flags(read: Callable[[str], Any], text: str, value: Any) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (lambda t: parse_share("--holdout", t), "101%"),
        (lambda t: parse_share("--holdout", t), "nan"),
        (lambda t: parse_count("--max-tokens", t), "many"),
        (lambda t: parse_count("--max-tokens", t), "-5"),
        ((lambda t: parse_shard("--shard", t)), "4/4"),
        ((lambda t: parse_shard("--shard", t)), "1"),
        (lambda t: parse_mix("--mix", t.split(",")), "zh"),
        (lambda t: parse_mix("--mix", t.split(",")), "zh=-1"),
        (lambda t: parse_mix("--mix", t.split(",")), "zh=1,zh=2"),
        (lambda t: parse_mix("--mix", t.split(",")), "zh=0"),
    ],
)
def test_wrong_values_of_flags(read: Callable[[str], Any], text: str) -> None:
    with pytest.raises(UsageError):
        read(text)
