"""Texts of every kind and in every state: each command reads them alike, what is not read is named, nothing hangs."""

import gzip
import io
import json
import os
import random
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.corpus import Reader, ReadOptions, labeled
from llmforge.dataset.forecast import forecast
from llmforge.dataset.options import PrepareOptions
from llmforge.dataset.prepare import prepare_data
from llmforge.errors import UserError
from llmforge.evaluate.texts import load_corpora
from llmforge.tokenizer.compare import compare
from llmforge.tokenizer.learn import learn_pieces
from llmforge.tokenizer.options import LearnPiecesOptions

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


TEXTS = ["the cat sat on the mat", "天气 the end\r\nof it", "a\0b", "\ufeffwith a mark inside"]
RECORDS = [{"text": text, "n": i, "meta": {"x": None}} for i, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()


def arrow(records: list[dict[str, Any]]) -> bytes:
    table, out = pa.Table.from_pylist(records), io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    return out.getvalue()


def parquet(records: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), out)
    return out.getvalue()


FORMATS = {
    "a.jsonl": LINES,
    "a.ndjson": LINES.replace(b"\n", b"\r\n"),
    "A.JSONL": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\n\n"),
    "a.json": LINES,
    "list.json": b"\xef\xbb\xbf" + json.dumps(RECORDS, indent=1).encode(),
    "a.v2.Json.GZ": gzip.compress(LINES[:40]) + gzip.compress(LINES[40:]),
    "a.jsonl.zst": zstandard.compress(LINES) + zstandard.compress(b"") + zstandard.compress(b"\n"),
    "a.parquet": parquet(RECORDS),
    "a.arrow": arrow(RECORDS),
}


def read_by_all(path: Path, prepare: Prepare, tokenizer: Path, **reading: Any) -> set[tuple[int, int]]:
    """(documents, tokens) as prepare-data, evaluate, learn-pieces and compare-tokenizers read `path`."""
    from llmforge.tokenizer import load

    options, loaded = ReadOptions(**reading), load(tokenizer)
    ledger = prepare(path, **reading)["written"]
    (row,) = compare([tokenizer], {"t": [path]}, reading=options)
    (corpus,) = load_corpora([f"t={path}"], None, None, reading=options)
    learned = learn_pieces(
        LearnPiecesOptions(
            tokenizer=tokenizer,
            data=[path],
            output=path.parent / "p.jsonl",
            num_pieces=1,
            overwrite=True,
            min_frequency=1,
            reading=options,
        )
    )
    documents = learned.manifest.metrics["documents"]
    assert learned.manifest.metrics["characters"] == row.characters == corpus.characters
    return {
        (ledger["documents"], ledger["tokens"] - ledger["documents"]),  # without the token behind each
        (row.samples, row.tokens),
        (len(corpus.documents), len(loaded.encode(corpus.documents)[0])),
        (documents, row.tokens),
    }


@pytest.mark.parametrize("name", FORMATS)
def test_every_command_reads_every_format_alike(
    prepare: Prepare, tmp_path: Path, tiny_tokenizer: Path, name: str
) -> None:
    from llmforge.tokenizer import load

    path = tmp_path / name
    path.write_bytes(FORMATS[name])
    expected = (len(TEXTS), len(load(tiny_tokenizer).encode(TEXTS)[0]))
    assert read_by_all(path, prepare, tiny_tokenizer) == {expected}
    assert [document.text for document in Reader([path], ReadOptions()).documents()] == TEXTS


@pytest.mark.parametrize(
    ("name", "lines", "texts"), [("a.txt", False, ["one\n\ntwo "]), ("B.MD", True, ["one", "two "])]
)
def test_every_command_reads_plain_text_alike(
    prepare: Prepare, tmp_path: Path, tiny_tokenizer: Path, name: str, lines: bool, texts: list[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbfone\n\ntwo ")
    (found,) = read_by_all(path, prepare, tiny_tokenizer, lines=lines)
    assert found[0] == len(texts)
    assert [document.text for document in Reader([path], ReadOptions(lines=lines)).documents()] == texts


NOISE = json.dumps({"text": random.Random(0).randbytes(999).hex()}).encode()
BAD = {
    "half": (b'{"text": "the \\udc00 end"}\n', "an unpaired surrogate"),
    "number": (b'{"text": 5}\n', "'text' is not text"),
    "category": (b'{"text": "x", "category": {}}\n', '--category-field "" reads without it'),
    "latin-1": (b'{"text": "na\xefve"}\n', "invalid UTF-8"),
    "nul": (b'{"text": "a\0b"}\n', "broken JSON"),
    "cut": (b'{"text": "a', "broken JSON"),
    "deep": (b'{"a":' * 9999 + b"\n", "broken JSON"),
    "utf-16": ('{"text": "the end"}\n'.encode("utf-16"), "iconv -f UTF-16"),
    "utf-16 gz": (gzip.compress('{"text": "the end"}\n'.encode("utf-16")), "iconv -f UTF-16"),
    "gz cut": (gzip.compress(NOISE)[:500], "damaged or truncated"),
    "zst cut": (zstandard.compress(NOISE)[:500], "damaged or truncated"),
    "gz bomb": (gzip.compress(bytes(80 << 20)), "decompression bomb"),
    "zst bomb": (zstandard.compress(bytes(80 << 20)), "decompression bomb"),
    "two.parquet": (b"", "has two columns 'text'"),
    "number.parquet": (parquet([{"text": 5}]), "'text' is not text"),
    "other.parquet": (parquet([{"content": "the end"}]), "(it has content)"),
    "cut.parquet": (FORMATS["a.parquet"][:-9], "damaged or truncated"),
    "cut.arrow": (FORMATS["a.arrow"][:-200], "damaged or truncated"),
}


@pytest.mark.parametrize("case", BAD)
def test_every_command_refuses_alike_what_is_no_text(
    prepare: Prepare, tmp_path: Path, tiny_tokenizer: Path, case: str
) -> None:
    data, sentence = BAD[case]
    suffix = ".gz" if "gz" in case else ".zst" if "zst" in case else ""
    path = tmp_path / (case if "." in case else f"a.jsonl{suffix}")
    path.write_bytes(data)
    if case == "two.parquet":
        pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), path)
    for read in (
        lambda: prepare(path),
        lambda: load_corpora([str(path)], None, None),
        lambda: compare([tiny_tokenizer], {"t": [path]}),
        lambda: learn_pieces(
            LearnPiecesOptions(
                tokenizer=tiny_tokenizer, data=[path], output=tmp_path / "p.jsonl", num_pieces=1
            )
        ),
    ):
        with pytest.raises(UserError) as refused:
            read()
        assert sentence in str(refused.value)
        assert path.name in str(refused.value)
    assert not {"p.jsonl", "out"} & {entry.name for entry in tmp_path.iterdir()}


def test_files_that_are_passed_over_are_counted_and_named(
    prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also what can only be read once, or never ends: nothing waits for it."""
    place = tmp_path / "in"
    for name in ("a.jsonl", "b.ndjson", "C.JSONL", "d.json", "sub/f.jsonl"):
        jsonl(place / name, [{"text": name}])
    (place / "c4-train.00000.json.gz").write_bytes(gzip.compress(b'{"text": "c4"}'))
    (place / "e.txt").write_text("e")
    for name in ("a.csv", "b.csv", "z.jsonl.bz2", "noext", "README.md", ".hidden.jsonl", "dataset_info.json"):
        (place / name).write_text("not read")
    os.mkfifo(place / "fifo.jsonl")
    (place / "null.jsonl").symlink_to("/dev/zero")
    (place / "gone.jsonl").symlink_to("nowhere")
    (place / "self.jsonl").symlink_to("self.jsonl")
    (place / "sub/up").symlink_to("..")
    (place / "again.jsonl").symlink_to("a.jsonl")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place / "s.jsonl"))
        ledger = prepare(place)
    assert ledger["written"]["documents"] == 7
    said = capsys.readouterr().err
    kinds = (
        "2 .csv",
        "1 .bz2",
        "1 without a suffix",
        "1 a FIFO",
        "1 a device",
        "1 a socket",
        "README or license files beside records",
    )
    for kind in (*kinds, "2 a link to nothing", "1 a link to a directory above it"):
        assert kind in said
    assert " and 6 more" in said
    assert "more than once; it is read once" in said
    assert ".hidden" not in said
    for name in ("fifo.jsonl", "null.jsonl", "s.jsonl"):
        with pytest.raises(UserError, match="can only be read once"):
            prepare(place / name)


def test_names_of_every_kind(prepare: Prepare, tmp_path: Path) -> None:
    """Commas, `=`, spaces, other scripts, bytes that are no UTF-8, line feeds and escape sequences."""
    place = tmp_path / "a,b=c d"
    names = [b"x=y,z.jsonl", "天气.jsonl".encode(), b"\xff\xfe.jsonl", b"\x1b[31m\n.jsonl", b"-o.jsonl"]
    for name in names:
        jsonl(place / os.fsdecode(name), [{"text": "the end"}])
    assert prepare(place)["written"]["documents"] == len(names)
    for name in names:
        path = place / os.fsdecode(name)
        assert labeled([str(path)]) == [(None, path)]
        assert labeled([f"t={path}"]) == [("t", path)]
        (corpus,) = load_corpora([str(path)], None, None)
        assert corpus.documents == ["the end"]
        corpus.label.encode()


def test_a_directory_of_save_to_disk(
    prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all its splits, which are said; without what `map` leaves beside the data."""
    from datasets import Dataset, DatasetDict, disable_progress_bars, load_from_disk

    disable_progress_bars()
    data = Dataset.from_list([{"text": text} for text in TEXTS])
    DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "both")
    load_from_disk(tmp_path / "both/train").map(lambda record: {"text": record["text"].upper()})
    assert list((tmp_path / "both/train").glob("cache-*.arrow"))
    assert prepare(tmp_path / "both")["written"]["documents"] == len(TEXTS) + 1
    said = capsys.readouterr().err
    assert "splits, and all are read: test, train" in said
    assert "skipped 1 cache files of `datasets`" in said
    assert prepare(tmp_path / "both/test")["written"]["documents"] == 1
    assert "splits" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nested.jsonl", "nested.json", "nested.parquet", "nested.arrow"])
def test_fields_inside_of_fields(prepare: Prepare, tmp_path: Path, name: str) -> None:
    records = [{"data": {"text": text, "meta": {"lang": "zh"}}} for text in TEXTS]
    path = jsonl(tmp_path / name, records)
    if name.endswith((".parquet", ".arrow")):
        path.write_bytes(parquet(records) if "parquet" in name else arrow(records))
    if name == "nested.json":
        path.write_text(json.dumps(records, indent=2))
    reading = ReadOptions(text_field="data.text", category_field="data.meta.lang")
    found = list(Reader([path], reading).documents())
    assert [(document.text, document.category) for document in found] == [(text, "zh") for text in TEXTS]
    with pytest.raises(UserError, match=r"no .*data\.txt"):
        prepare(path, text_field="data.txt")


WRITTEN = st.sampled_from(
    [*LINES.splitlines(keepends=True), *(data for data, _ in BAD.values() if 0 < len(data) < 500)]
)


@pytest.mark.fuzz
@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(
        [".jsonl", ".json", ".txt", ".jsonl.gz", ".json.zst", ".parquet", ".arrow", ".md.gz"]
    ),
    parts=st.lists(WRITTEN | st.binary(max_size=40), max_size=6),
    cut=st.none() | st.integers(1, 400),
    lines=st.booleans(),
)
def test_whatever_a_file_holds_is_read_or_counted(
    tmp_path_factory: pytest.TempPathFactory, kind: str, parts: list[bytes], cut: int | None, lines: bool
) -> None:
    data = b"".join(parts)
    if kind in (".parquet", ".arrow"):
        whole = FORMATS[f"a{kind}"]
        data = whole[: len(whole) // 2] + data + whole[len(whole) // 2 + len(data) :]
    data = (
        gzip.compress(data)
        if kind.endswith("gz")
        else zstandard.compress(data)
        if kind.endswith("zst")
        else data
    )
    path = tmp_path_factory.mktemp("fuzz") / f"a{kind}"
    path.write_bytes(data[:cut])
    reader, written, sentence = Reader([path], ReadOptions(lines=lines)), 0, path.name
    try:
        for _, _, block in reader.blocks():
            written += len([text.encode() for text in block.text.to_pylist()])
    except UserError as error:
        sentence = str(error)
    assert path.name in sentence
    assert reader.account.read == written + reader.account.rejected.total()
