"""prepare-data from end to end: every format, the ledger, the same bytes however the work is shared."""

import base64
import gzip
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from llmforge.dataset.inspection import inspect_dataset
from llmforge.dataset.packed import PackedDataset
from llmforge.errors import UserError
from llmforge.steps.fingerprint import fingerprint_contents
from llmforge.tokenizer import load
from llmforge.tokenizer.formats.schemes import SCHEMES
from llmforge.train.sampler import Sampler

from .conftest import contents, write_jsonl

Prepare = Callable[..., Any]


def corpus(n: int = 60, seed: int = 0) -> list[dict[str, str]]:
    chance = np.random.default_rng(seed)
    words = ["the", "cat", "公园", "天气", "birds", "1998", "return", "garden\n", "很好", "and"]
    return [
        {
            "target": f"{i} " + " ".join(chance.choice(words, int(chance.integers(1, 60)))),
            "category": "ab"[i % 2],
        }
        for i in range(n)
    ]


def documents(directory: Path, tokenizer: Path) -> Counter[str]:
    """The documents of a dataset as texts, put together again from their pieces, whichever row those are
    in.
    """
    dataset, eos = PackedDataset([directory]), load(tokenizer).eos_id
    backend = load(tokenizer)
    whole: Counter[str] = Counter()
    for row in dataset.rows(range(len(dataset))):
        for ids in np.split(row.input_ids, np.cumsum(row.seq_lengths)[:-1]):
            assert ids[-1] == eos, "these documents fit into a row"
            whole[backend.decode(ids[:-1])] += 1
    return whole


def test_every_format_gives_the_same_dataset(prepare: Prepare, tmp_path: Path, byte_level: Path) -> None:
    records = corpus()
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    for kind in ("jsonl", "gz", "zst", "parquet"):
        (tmp_path / kind / "in").mkdir(parents=True)
    (tmp_path / "jsonl/in/x.jsonl").write_bytes(text)
    (tmp_path / "gz/in/x.jsonl.gz").write_bytes(gzip.compress(text))
    halves = [zstandard.compress(text[:999]), zstandard.compress(text[999:])]
    (tmp_path / "zst/in/x.jsonl.zst").write_bytes(b"".join(halves))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "parquet/in/x.parquet", row_group_size=7)
    made = [
        contents(prepare(tmp_path / kind / "in", name=f"out-{kind}", max_length=512).output)
        for kind in ("jsonl", "gz", "zst", "parquet")
    ]
    assert made[0] == made[1] == made[2] == made[3]
    assert documents(tmp_path / "out-gz", byte_level) == Counter(record["target"] for record in records)


def test_the_dataset_opens_with_datasets_and_agrees_with_packed_dataset(
    prepare: Prepare, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "in/x.jsonl", corpus())
    output = prepare(tmp_path / "in").output
    mine = PackedDataset([output])
    theirs = [
        row for part in sorted((output / "arrow").iterdir()) for row in datasets.load_from_disk(str(part))
    ]
    assert len(theirs) == len(mine)
    for row, other in zip(mine.rows(range(len(mine))), theirs, strict=True):
        assert row.input_ids.tolist() == other["input_ids"]
        assert row.labels.tolist() == other["labels"]
        assert row.seq_lengths.tolist() == other["seq_lengths"]
        assert row.seq_categories == other["seq_categories"]
        assert row.seq_bytes.tolist() == other["seq_bytes"]
        assert row.seq_lengths.sum() == len(row.input_ids) <= 64
    assert sum(len(row["input_ids"]) for row in theirs) == mine.tokens
    single = PackedDataset(sorted((output / "arrow").iterdir()))
    assert len(single) == len(mine)
    first, second = (sampler.next(len(mine)) for sampler in [Sampler(mine, 7)] for _ in range(2))
    assert sorted(second.tolist()) == sorted(first.tolist()) == list(range(len(mine)))
    assert (first != second).any()
    same = (Sampler(single, 7).next(len(mine)) == first).all()
    assert same == (mine.fingerprint == single.fingerprint)


def test_bins_hold_equal_tokens_of_every_category(prepare: Prepare, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/x.jsonl", corpus(400))
    output = prepare(tmp_path / "in", bins=5, max_length=256).output
    longest = max(len(r["target"].encode()) + 2 for r in corpus(400))
    for category in "ab":
        tokens = [
            sum(
                int(n)
                for row in PackedDataset([part]).rows(range(len(PackedDataset([part]))))
                for n, name in zip(row.seq_lengths, row.seq_categories, strict=True)
                if name == category
            )
            for part in sorted((output / "arrow").iterdir())
        ]
        assert len(tokens) == 5
        assert max(tokens) - min(tokens) <= 2 * longest


@pytest.mark.parametrize("flat", [False, True])
def test_the_fingerprint_is_that_of_the_bytes_on_disk_though_parts_are_read_once(
    prepare: Prepare, tmp_path: Path, flat: bool
) -> None:
    finished = prepare(
        write_jsonl(tmp_path / "in/x.jsonl", corpus()),
        arrow_output_dir=tmp_path / "out" if flat else None,
        workers=2,
    )
    assert finished.manifest.outputs["fingerprint"] == fingerprint_contents(finished.output)
    assert not any("fingerprint" in part for part in finished.manifest.metrics["parts"])


def test_the_number_of_workers_does_not_show(prepare: Prepare, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("llmforge.corpus.sources.SMALLEST_CHUNK", 4000)
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"in/{name}.jsonl", corpus(200, seed=ord(name)))
    one = contents(prepare(tmp_path / "in", name="one", workers=1).output)
    assert one == contents(prepare(tmp_path / "in", name="three", workers=3).output)
    assert one != contents(prepare(tmp_path / "in", name="seed", seed=1).output)


def test_source_is_masked_and_bytes_are_those_of_the_target(
    prepare: Prepare, tmp_path: Path, byte_level: Path, llama_like: Path
) -> None:
    records = [
        {"source": "甲乙丙丁", "target": "戊己庚辛"},
        {"source": "The cat sat", "target": " on the mat" * 40},
        {"source": "", "target": "plain 公园"},
        {"target": " leading space"},
    ]
    write_jsonl(tmp_path / "in/x.jsonl", records)
    for tokenizer in (byte_level, llama_like):
        output = prepare(tmp_path / "in", name=tokenizer.name, tokenizer=tokenizer, bins=1).output
        dataset, loaded = PackedDataset([output]), load(tokenizer)
        total = 0
        for row in dataset.rows(range(len(dataset))):
            total += int(row.seq_bytes.sum())
            trained = row.labels[row.labels != -100]
            assert (trained == row.input_ids[row.labels != -100]).all()
            for ids, labels in zip(
                np.split(row.input_ids, np.cumsum(row.seq_lengths)[:-1]),
                np.split(row.labels, np.cumsum(row.seq_lengths)[:-1]),
                strict=True,
            ):
                text = loaded.decode([i for i in ids.tolist() if i not in loaded.special_ids])
                if "甲乙丙丁" in text:
                    shown = loaded.decode(labels[labels != -100])
                    assert shown.startswith("戊己庚辛")
        # A token may begin in the source and end in the target; here none does.
        assert total == sum(len(record["target"].encode()) for record in records)


def test_the_ledger_balances_and_rejected_lines_are_named(prepare: Prepare, tmp_path: Path) -> None:
    lines = [json.dumps(record) for record in corpus(50)]
    lines[10] = lines[10][:-4]
    lines.insert(20, "")
    lines[30] = '{"target": 5}'
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"2 of 50 documents.*--max-rejected.*x\.jsonl, line 11: broken JSON"):
        prepare(tmp_path / "in")
    finished = prepare(tmp_path / "in", max_rejected=0.05)
    ledger = finished.manifest.metrics["ledger"]
    assert (
        ledger["read"]["documents"] == 50 == ledger["written"]["documents"] + ledger["rejected"]["documents"]
    )
    rejected = [json.loads(line) for line in (finished.output / "rejected.jsonl").read_text().splitlines()]
    assert [(entry["line"], entry["reason"]) for entry in rejected] == [
        (11, "broken JSON"),
        (31, "'target' is not text"),
    ]
    with pytest.raises(UserError, match=r"line 11: broken JSON.*--on-bad-line"):
        prepare(tmp_path / "in", name="stop", on_bad_line="stop")


def test_held_out_documents_are_written_whole_and_never_trained_on(
    prepare: Prepare, tmp_path: Path, byte_level: Path
) -> None:
    records = corpus(100)
    records += records[:10]
    write_jsonl(tmp_path / "in/x.jsonl", records)
    output = prepare(tmp_path / "in", holdout=0.05, max_length=512).output
    held: Counter[str] = Counter()
    for category in "ab":
        for line in (output / "holdout" / f"{category}.jsonl").read_text(encoding="utf-8").splitlines():
            assert json.loads(line)["category"] == category
            held[json.loads(line)["target"]] += 1
    trained = documents(output, byte_level)
    assert held
    assert not set(held) & set(trained)
    assert held + trained == Counter(record["target"] for record in records)


def test_ranks_that_cannot_be_told_are_read_by_their_scheme(
    prepare: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    special = {"<|endoftext|>": 256}
    for name in ("qwen", "qwen2"):
        monkeypatch.setitem(SCHEMES, name, replace(SCHEMES[name], ranks=256, special=special))
    (tmp_path / "tokenizer").mkdir()
    ranks = b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256))
    (tmp_path / "tokenizer/some.tiktoken").write_bytes(ranks)
    write_jsonl(tmp_path / "in/x.jsonl", [{"target": "the cat"}])
    with pytest.raises(UserError, match="choose one with --tokenizer-scheme"):
        prepare(tmp_path / "in", tokenizer=tmp_path / "tokenizer")
    finished = prepare(tmp_path / "in", tokenizer=tmp_path / "tokenizer", tokenizer_scheme="qwen2")
    assert finished.manifest.metrics["tokens"] == 8
    inspect_dataset([finished.output], tmp_path / "tokenizer", 1, tokenizer_scheme="qwen2")
