"""Documents longer than a part: the ids of the whole, in little memory, and what is too long is refused by its line."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmforge.corpus import Chunk, ReadOptions, find_chunks, read_blocks
from llmforge.corpus.beginning import beginning
from llmforge.dataset import encoding, sample
from llmforge.dataset.encoding import Encoder, save_framed, save_reference
from llmforge.dataset.sample import sample_texts
from llmforge.errors import UserError
from llmforge.tokenizer import load

from .conftest import contents, write_jsonl

LONG = "The cat, 公园里散步。 x² １２①12\n\n" * 40 + "é 散步,the end of it"


@pytest.mark.parametrize("backend", ["gigatoken", "tokenizers"])
@pytest.mark.parametrize("alone", [True, False])
def test_long_documents_have_the_ids_of_the_whole(
    tmp_path: Path,
    byte_level: Path,
    llama_like: Path,
    single_digits: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    alone: bool,
) -> None:
    texts = pa.array(["a", LONG, "b", LONG[3:], "\n".join([LONG] * 3), "x" * 2000, "c"])
    used: set[int] = set()
    part_ids = Encoder._part_ids

    def seen(*arguments: Any) -> Any:
        used.add(threading.get_ident())
        time.sleep(0.0005)
        return part_ids(*arguments)

    for directory in (byte_level, llama_like, single_digits):
        tokenizer = load(directory)
        saved = tmp_path / directory.name
        save_framed(tokenizer, saved, threads=3)
        save_reference(tokenizer, saved)
        encoder = Encoder(saved, backend)
        whole, offsets, _ = encoder.ids(texts)
        sizes = {"gigatoken": 70, "tokenizers": 70}
        for name, size in (("LONG_BYTES", 300), ("PART_BYTES", sizes), ("PORTION_BYTES", 90)):
            monkeypatch.setattr(encoding, name, size)
        monkeypatch.setattr(Encoder, "_part_ids", seen)
        assert len(encoder.cuts.find(memoryview(LONG.encode()), 70)) > 10
        with encoding._alone(saved) if not alone else nullcontext():
            used.clear()
            parts, cuts, _ = encoder.ids(texts.slice(1, 1))
            assert len(used) > 1 if alone else len(used) == 1
            assert np.array_equal(parts, whole[offsets[1] : offsets[2]])
            parts, cuts, _ = encoder.ids(texts)
        monkeypatch.undo()
        assert np.array_equal(parts, whole)
        assert np.array_equal(cuts, offsets)
        assert parts.dtype == np.int32


@pytest.mark.slow
def test_several_workers_write_a_long_document_as_one_does(
    prepare: Callable[..., Any], tmp_path: Path
) -> None:
    text = LONG * -(-(encoding.LONG_BYTES + 1) // len(LONG.encode()))
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "short"}, {"text": text}, {"text": text[:999]}])
    one = prepare(path, name="one", workers=1, max_length=4096)
    two = prepare(path, name="two", workers=2, max_length=4096)
    assert contents(one.output) == contents(two.output)
    assert two.manifest.metrics["encoder"]["backend"] == "gigatoken"


def test_the_sample_is_as_large_where_most_chunks_lie_inside_of_one_document(tmp_path: Path) -> None:
    text = LONG * -(-(20 << 20) // len(LONG.encode()))
    chunks = find_chunks([write_jsonl(tmp_path / "a.jsonl", [{"text": text}])])
    assert len(chunks) > 3
    (sampled,) = sample_texts(chunks, ReadOptions(), 100_000)
    assert text.startswith(sampled)
    assert len(sampled.encode()) > 90_000


def test_the_sample_of_a_long_document_is_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "LONGEST_SAMPLED", 500)
    (tmp_path / "a.txt").write_text(LONG, encoding="utf-8")
    write_jsonl(tmp_path / "b.jsonl", [{"id": "x", "target": LONG + '\\"😀'}])
    (tmp_path / "c.json").write_text(json.dumps([{"meta": {"t": LONG}}]), encoding="utf-8")
    pq.write_table(pa.table({"text": [LONG]}), tmp_path / "d.parquet")
    for name, options in (
        ("a.txt", ReadOptions()),
        ("b.jsonl", ReadOptions()),
        ("c.json", ReadOptions("meta.t")),
        ("d.parquet", ReadOptions()),
    ):
        for size in range(100, 130):
            (text,) = sample_texts(find_chunks([tmp_path / name]), options, size)
            assert 0 < len(text.encode()) <= size
            assert LONG.startswith(text)
            if name != "d.parquet":
                assert beginning(find_chunks([tmp_path / name])[0], options, size) == text


def test_short_documents_are_sampled_behind_long_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "LONGEST_SAMPLED", 500)
    monkeypatch.setattr(sample, "SAMPLE_BLOCK_BYTES", 100)
    write_jsonl(tmp_path / "a.jsonl", [{"target": LONG}, {"target": "short"}])
    assert sample_texts(find_chunks([tmp_path / "a.jsonl"]), ReadOptions()) == ["short"]


def records_of(name: str, path: Path) -> None:
    """Three documents, of which the second is longer than 100 bytes."""
    texts = ["one", "x" * 101, "three"]
    if name in (".jsonl", ".ndjson"):
        write_jsonl(path, [{"text": text} for text in texts])
    elif name == ".json":
        path.write_text(json.dumps([{"text": text} for text in texts], indent=1), encoding="utf-8")
    elif name == ".txt":
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    elif name == ".parquet":
        pq.write_table(pa.table({"text": texts}), path)
    else:
        with (
            pa.OSFile(str(path), "wb") as file,
            pa.ipc.new_stream(file, pa.schema([("text", pa.string())])) as stream,
        ):
            stream.write_table(pa.table({"text": texts}))


@pytest.mark.parametrize("name", [".jsonl", ".ndjson", ".json", ".txt", ".parquet", ".arrow"])
def test_a_document_beyond_the_limit_is_rejected_with_file_and_line(
    prepare: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    path = tmp_path / "in" / f"a{name}"
    path.parent.mkdir()
    records_of(name, path)
    reading = ReadOptions(lines=name == ".txt", max_document_bytes=100)
    finished = prepare(path, reading=reading, max_rejected=1.0)
    (entry,) = map(json.loads, (finished.output / "rejected.jsonl").read_text().splitlines())
    assert (entry["file"], entry["line"]) == (str(path), 2)
    assert entry["reason"].endswith("longer than --max-document-bytes 100")
    ledger = finished.manifest.metrics["ledger"]
    assert ledger["rejected"]["reasons"][entry["reason"]]["documents"] == 1


def test_a_parquet_bomb_is_refused_before_it_is_decompressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"text": ["a" * 70_000_000]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UserError, match="more than 200 times its size, as a decompression bomb does"):
        list(read_blocks(find_chunks([tmp_path / "a.parquet"])[0], ReadOptions()))


@pytest.mark.parametrize("kind", ["utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_text_in_utf_16_and_32_is_told_apart(tmp_path: Path, kind: str, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes('{"text": "公园"}\n'.encode(kind))
    with pytest.raises(UserError, match=f"is {kind.upper()}; convert it to UTF-8"):
        list(read_blocks(find_chunks([tmp_path / f"a{suffix}"])[0], ReadOptions()))


@pytest.mark.parametrize("block_bytes", [1, 64, 150, 1 << 20])
def test_a_line_of_json_is_too_long_whatever_it_holds_and_wherever_a_block_ends(
    tmp_path: Path, block_bytes: int
) -> None:
    lines = [
        {"text": "one"},
        {"text": "two", "other": "x" * 200},
        {"text": "three"},
        {"text": "y" * 300},
        {"text": "5"},
    ]
    write_jsonl(tmp_path / "a.jsonl", lines)
    for stop in (None, *range(1, 400, 37)):
        (chunk,) = find_chunks([tmp_path / "a.jsonl"])
        chunks = [chunk]
        if stop:
            chunks = [replace(chunk, stop=stop), replace(chunk, start=stop)]
        found, rejected, before = [], [], 0
        for one in chunks:
            seen = 0
            for block in read_blocks(one, ReadOptions(max_document_bytes=100), block_bytes):
                found += block.text.to_pylist()
                rejected += [before + entry.line for entry in block.rejected]
                seen += block.lines
            before += seen
        assert (found, rejected) == (["one", "three", "5"], [2, 4]), stop


@pytest.mark.parametrize("longest", [4, 12, 1000])
def test_lines_of_any_length_are_divided_among_chunks_wherever_they_are_cut(
    tmp_path: Path, longest: int
) -> None:
    """A line belongs to the chunk in which it begins, whether or not it fits there, or into any limit."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n" + b"x" * 30 + b"\n\ntwo\n" + b"y" * 13 + b"\nfour")
    size, options = path.stat().st_size, ReadOptions(lines=True, max_document_bytes=longest)
    (whole,) = find_chunks([path], lines=True)

    def found(*chunks: Chunk) -> tuple[list[str], int]:
        blocks = [block for chunk in chunks for block in read_blocks(chunk, options, block_bytes=8)]
        texts = [text for block in blocks for text in block.text.to_pylist()]
        return texts, sum(one.documents for block in blocks for one in block.rejected)

    expected = found(whole)
    assert (expected[1], len(expected[0])) == ((0, 5) if longest == 1000 else (2, 3))
    for a in range(1, size):
        for b in range(a + 1, size, 7):
            cuts = [0, a, b, size]
            parts = [replace(whole, start=start, stop=stop) for start, stop in pairwise(cuts)]
            assert found(*parts) == expected, cuts
