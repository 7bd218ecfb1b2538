"""What is wrong with an input is named and counted, and costs nothing else."""

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.corpus import Block, Chunk, ReadOptions, find_chunks, read_blocks
from llmforge.errors import UserError

from .conftest import write_jsonl

Prepare = Callable[..., Any]
GOOD = [
    json.dumps({"target": f"document {i} 公园", "source": None, "n": i}, ensure_ascii=False)
    for i in range(40)
]

BAD_LINES = {
    b'{"target": "cut off': "broken JSON",
    b'{"target": "\xff\xfe"}': "invalid UTF-8",
    b'{"target": "raw \x00 NUL"}': "broken JSON",
    b"[1, 2]": "not a JSON object",
    b'{"source": "only"}': "no 'target' or 'text'",
    b'{"target": 5}': "'target' is not text",
    b'{"target": ["a"]}': "'target' is not text",
    b'{"target": ""}': "empty text",
    b'{"target": "x", "category": 3}': "'category' is not text (--category-field \"\" reads without it)",
    b'{"target": "\\ud800"}': "'target' holds an unpaired surrogate",
    b'{"target": "a"} {"target": "b"}': "broken JSON",
    b'{"a":' * 5000: "broken JSON",
}


def rejected(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_named_and_all_others_are_read(prepare: Prepare, tmp_path: Path, line: bytes) -> None:
    (tmp_path / "in").mkdir()
    lines = [text.encode() for text in GOOD]
    (tmp_path / "in/x.jsonl").write_bytes(b"\n".join([*lines[:17], line, *lines[17:]]))
    finished = prepare(tmp_path / "in", max_rejected=0.1)
    assert finished.manifest.metrics["ledger"]["written"]["documents"] == len(GOOD)
    (entry,) = rejected(finished.output)
    assert (entry["line"], entry["reason"]) == (18, BAD_LINES[line])
    assert entry["file"].endswith("x.jsonl")


def test_an_escaped_nul_and_a_line_without_an_end_are_text(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.jsonl").write_bytes(b'\xef\xbb\xbf{"target": "a\\u0000b"}\r\n\n{"text": "c"}')
    ledger = prepare(tmp_path / "in").manifest.metrics["ledger"]
    assert ledger["read"]["documents"] == ledger["written"]["documents"] == 2


def test_a_line_of_50_mb(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with (tmp_path / "in/x.jsonl").open("w", encoding="utf-8") as file:
        file.write(
            GOOD[0] + "\n" + json.dumps({"target": "the cat sat on the mat " * 2_200_000}) + "\n" + GOOD[1]
        )
    finished = prepare(tmp_path / "in", max_length=4096)
    assert finished.manifest.metrics["ledger"]["written"]["documents"] == 3
    assert finished.manifest.metrics["fill"] > 0.99


def test_a_line_that_is_too_long_is_skipped(tmp_path: Path) -> None:
    lines = [*GOOD[:3], json.dumps({"target": "x" * 5000}), *GOOD[3:6]]
    for name, data in (
        ("x.jsonl", "\n".join(lines).encode()),
        ("y.jsonl.gz", gzip.compress("\n".join(lines).encode())),
    ):
        (tmp_path / name).write_bytes(data)
        blocks = list(
            read_blocks(
                find_chunks([tmp_path / name])[0], ReadOptions(max_document_bytes=1000), block_bytes=600
            )
        )
        assert sum(map(len, blocks)) == 6
        (bad,) = [one for block in blocks for one in block.rejected]
        assert (bad.line, bad.reason) == (4, "the line is longer than --max-document-bytes 1000")
        assert blocks[-1].line[-1] == 7


@pytest.mark.parametrize("kind", [".jsonl.gz", ".jsonl.zst"])
def test_a_truncated_file_keeps_what_comes_before_the_cut(
    prepare: Prepare, tmp_path: Path, kind: str
) -> None:
    noise = random.Random(0)
    lines = [json.dumps({"target": "".join(noise.choices("abcdefgh \n", k=300))}) for _ in range(2000)]
    text = "".join(line + "\n" for line in lines).encode()
    data = gzip.compress(text) if kind == ".jsonl.gz" else zstandard.compress(text)
    write_jsonl(tmp_path / "in/good.jsonl", [{"target": "whole"}] * 50)
    (tmp_path / f"in/x{kind}").write_bytes(data[: len(data) * 3 // 4])
    finished = prepare(tmp_path / "in", max_rejected=0.5)
    (entry,) = rejected(finished.output)
    assert entry["line"] is None
    assert "damaged or truncated" in entry["reason"]
    assert finished.manifest.metrics["ledger"]["written"]["documents"] > 50 + 800


def test_damaged_parquet_files_and_wrong_columns(prepare: Prepare, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/good.jsonl", [{"target": "whole"}] * 50)
    pq.write_table(pa.table({"target": ["a", "b"]}), tmp_path / "in/a.parquet")
    (tmp_path / "in/b.parquet").write_bytes((tmp_path / "in/a.parquet").read_bytes()[:-30])
    pq.write_table(pa.table({"words": ["a", "b"]}), tmp_path / "in/c.parquet")
    pq.write_table(pa.table({"target": [1, 2, 3]}), tmp_path / "in/d.parquet")
    pq.write_table(pa.table({"target": pa.array([b"good", b"\xff", None])}), tmp_path / "in/e.parquet")
    finished = prepare(tmp_path / "in", max_rejected=0.5)
    reasons = {
        (Path(e["file"]).name, e["line"]): (e["reason"], e["documents"]) for e in rejected(finished.output)
    }
    assert "damaged or truncated" in reasons.pop(("b.parquet", None))[0]
    assert reasons == {
        ("c.parquet", None): ("the parquet file has no column 'target' or 'text' (it has words)", 2),
        ("d.parquet", None): ("'target' is not text: the column is int64", 3),
        ("e.parquet", 2): ("invalid UTF-8", 1),
        ("e.parquet", 3): ("no 'target' or 'text'", 1),
    }
    assert finished.manifest.metrics["ledger"]["written"]["documents"] == 50 + 2 + 1


def test_inputs_with_nothing_in_them(
    prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no readable files found \(.*\.jsonl"):
        prepare(tmp_path / "empty")
    (tmp_path / "empty/x.jsonl").touch()
    with pytest.raises(UserError, match="no documents found"):
        prepare(tmp_path / "empty")
    with pytest.raises(UserError, match="does not exist"):
        prepare(tmp_path / "nowhere")
    write_jsonl(tmp_path / "in/x.jsonl", [{"target": "a b c"}])
    (tmp_path / "nothing").mkdir()
    prepare(tmp_path / "in", tmp_path / "nothing", tmp_path / "in/x.jsonl", tmp_path / "empty")
    said = capsys.readouterr().err
    assert "nothing contains no readable files (.arrow, .json, .jsonl" in said
    assert "given more than once" in said
    assert not list(tmp_path.glob("out.*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_tokenizer_with_merges_of_no_pieces_is_refused(
    prepare: Prepare, tmp_path: Path, byte_level: Path, workers: int
) -> None:
    write_jsonl(tmp_path / "in/x.jsonl", [{"target": "a b c"}] * 3)
    damaged = tmp_path / "damaged"
    shutil.copytree(byte_level, damaged)
    raw = json.loads((damaged / "tokenizer.json").read_text())
    raw["model"]["merges"].append(["no such", "piece"])
    (damaged / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(
        UserError, match=r"damaged has a tokenizer that cannot be read .* download its files again"
    ):
        prepare(tmp_path / "in", tokenizer=damaged, workers=workers)
    assert not (tmp_path / "out").exists()


def test_duplicate_inputs_are_read_once(prepare: Prepare, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/x.jsonl", [{"target": "a b c"}] * 3)
    (tmp_path / "in/y.jsonl").symlink_to(tmp_path / "in/x.jsonl")
    assert prepare(tmp_path / "in", tmp_path / "in").manifest.metrics["ledger"]["read"]["documents"] == 3


def test_a_directory_that_cannot_be_read_stops_everything(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "in/sub/x.jsonl", [{"target": "a"}])
    real = os.scandir

    def refuse(path: Any) -> Any:  # root may read everything, so the refusal is put in here
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"sub cannot be read \(Permission denied\)"):
        prepare(tmp_path / "in")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(
    tmp_path: Path, byte_level: Path, llmforge: Any
) -> None:
    """The shell's limit on file sizes stands in for the disk: writing fails with an error in the same
    place.
    """
    write_jsonl(tmp_path / "in/x.jsonl", [{"target": f"the cat {i} " * 200} for i in range(2000)])
    command = (
        "import resource,signal,sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "sys.argv = ['llmforge', *sys.argv[1:]];"
        "from llmforge.cli.main import main; main()"
    )
    import subprocess
    import sys

    words = ["prepare-data", "--data-input-dirs", str(tmp_path / "in"), "--tokenizer-dir", str(byte_level)]
    words += ["--data-output-dirs", str(tmp_path / "out"), "--workers", "1"]
    done = subprocess.run([sys.executable, "-c", command, *words], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "file too large" in done.stderr.lower()
    assert f"not enough disk space for {tmp_path / 'out'}" in done.stderr
    assert list((tmp_path / ".out.partial/.work/shards").iterdir())
    assert not (tmp_path / "out").exists()
    llmforge(*words)  # and with room the same command goes on and finishes
    assert (tmp_path / "out/llmforge.json").is_file()


def mutate(line: bytes, chance: random.Random) -> bytes:
    data = bytearray(line)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data) + 1)
        what = chance.random()
        if what < 0.35:
            data[at:at] = bytes([chance.choice(b'{}[]",:\\\x00\xff\xe4\r\n ue0')])
        elif what < 0.7 and data:
            del data[at : at + chance.randint(1, 4)]
        elif data:
            data[at % len(data)] = chance.randrange(256)
    return bytes(data)


@given(st.integers(0, 2**32), st.lists(st.binary(max_size=60), max_size=3))
@settings(max_examples=150, deadline=None)
def test_fuzzed_lines_never_stop_the_reader_and_never_cost_a_good_line(seed: int, noise: list[bytes]) -> None:
    """Both ways of parsing must agree: a block with one bad line, and each of its lines alone."""
    chance = random.Random(seed)
    good = [line.encode() for line in GOOD[: chance.randint(1, 12)]]
    bad = [mutate(chance.choice(good), chance) for _ in range(chance.randint(0, 3))]
    bad += [line.replace(b"\0", b"") for line in noise]  # a file that begins as UTF-16 is refused as a whole
    lines = b"\n".join(chance.sample([*good, *bad], len(good) + len(bad))).split(b"\n")
    blocks = read_bytes(b"\n".join(lines))
    texts = [text for block in blocks for text in block.text.to_pylist()]
    alone = [text for line in lines if line for block in read_bytes(line) for text in block.text.to_pylist()]
    assert texts == alone
    assert {json.loads(line)["target"] for line in good} <= set(texts)
    count = sum(len(block) + len(block.rejected) for block in blocks)
    assert count == sum(1 for line in lines if line.strip())


def read_bytes(data: bytes) -> list[Block]:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(data)
        file.flush()
        chunk = Chunk(0, file.name, file.name, ".jsonl", "", "c", 0, len(data), len(data))
        return list(read_blocks(chunk, ReadOptions()))


@given(st.integers(1, 30), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_chunks_divide_a_file_wherever_they_cut(count: int, chunks: int) -> None:
    import tempfile

    data = "\n".join([*GOOD[:count], "", "{bad"]).encode()
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(data)
        file.flush()
        cuts = [len(data) * i // chunks for i in range(chunks + 1)]
        parts = [
            list(read_blocks(Chunk(i, file.name, "x", ".jsonl", "", "c", a, b, b - a), ReadOptions()))
            for i, (a, b) in enumerate(pairwise(cuts))
        ]
    texts = [text for part in parts for block in part for text in block.text.to_pylist()]
    assert texts == [json.loads(line)["target"] for line in GOOD[:count]]
    assert sum(block.lines for part in parts for block in part) == count + 2
    assert sum(len(block.rejected) for part in parts for block in part) == 1
