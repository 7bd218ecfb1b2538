"""Data sets by their name, from a Hub on this machine: the documents of the files, whatever becomes of the connection."""

import io
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import Hub, commit_of

from llmforge.dataset.options import PrepareOptions
from llmforge.dataset.prepare import prepare_data
from warm import TERMINAL, Warm

Prepare = Callable[..., "subprocess.CompletedProcess[str]"]
CARD = b"""---
configs:
- config_name: all
  default: true
  data_files:
  - split: train
    path: data/train.jsonl
  - split: test
    path: data/test.jsonl
- config_name: zh
  data_files: zh/*.jsonl
---
# Lines
"""


def lines(first: int, last: int) -> bytes:
    records = ({"text": f"the cat {i} sat, \u516c\u56ed {i}", "n": i} for i in range(first, last))
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def rows(first: int, last: int) -> bytes:
    out = io.BytesIO()
    table = pa.table({"source": [f"{i}?" for i in range(first, last)], "target": ["yes"] * (last - first)})
    pq.write_table(table, out, row_group_size=500)
    return out.getvalue()


NEW = {
    "README.md": CARD,
    "data/train.jsonl": lines(0, 3000),
    "data/test.jsonl": lines(5000, 5100),
    "zh/part.jsonl": lines(7000, 7050),
}
OLD = {**NEW, "data/train.jsonl": lines(0, 10)}
ROWS = {"data/train-00000-of-00001.parquet": rows(0, 2000), "data/test-00000-of-00001.parquet": rows(0, 9)}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub({"org/lines": {"v2": NEW, "v1": OLD}, "org/rows": {"v1": ROWS}}) as server:
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def forking(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    home = tmp_path_factory.mktemp("hf")
    (home / "torch").mkdir()  # what reads text must do without torch, and so must what `datasets` does for it
    (home / "torch/__init__.py").write_text('raise SystemExit("torch is imported")')
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**kept, **TERMINAL, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home)}
    environment["PYTHONPATH"] = os.pathsep.join([str(home), *filter(None, [kept.get("PYTHONPATH")])])
    process = Warm(environment, ["datasets", "pyarrow.compute", "pyarrow.json", "gigatoken", "pandas"])
    yield process
    process.close()


@pytest.fixture
def prepare(forking: Warm, hub: Hub, tmp_path: Path, tiny_tokenizer: Path) -> Iterator[Prepare]:
    """`prepare(input, output, code=0)` runs prepare-data, whose data sets of the Hub are kept in tmp_path."""

    def run(given: object, output: str = "out", code: int = 0) -> "subprocess.CompletedProcess[str]":
        words = ["prepare-data", "--data-input-dirs", str(given), "--tokenizer-dir", str(tiny_tokenizer)]
        words += ["--data-output-dirs", str(tmp_path / output), "--max-length", "256", "--workers", "1"]
        environment = {**forking.environment, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        done = forking.run(words, environment, 120)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    hub.requests.clear()
    yield run
    hub.breaking, hub.breaks, hub.forbids = "", 0, False


def written(directory: Path) -> dict[str, bytes]:
    """Every file of the dataset but its manifest, which holds times and paths."""
    return {
        file.relative_to(directory).as_posix(): file.read_bytes()
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file.name != "llmforge.json"
    }


def from_file(tokenizer: Path, tmp_path: Path, category: str, name: str, data: bytes) -> dict[str, bytes]:
    """What is prepared from a file of this name in a directory of the name of the data set."""
    (tmp_path / category).mkdir()
    (tmp_path / category / name).write_bytes(data)
    options = PrepareOptions([tmp_path / category], tokenizer, tmp_path / "files", max_length=256, workers=1)
    return written(prepare_data(options).output)


@pytest.mark.parametrize(
    ("given", "category", "name", "data"),
    [
        ("org/lines", "lines", "a.jsonl", NEW["data/train.jsonl"]),
        ("org/lines@v1:all:train", "lines", "a.jsonl", OLD["data/train.jsonl"]),
        ("org/lines:test[:7]", "lines", "a.jsonl", lines(5000, 5007)),
        (f"org/lines@{commit_of(NEW)}:zh:train", "lines", "a.jsonl", NEW["zh/part.jsonl"]),
        ("org/rows", "rows", "a.parquet", ROWS["data/train-00000-of-00001.parquet"]),
    ],
)
def test_a_name_gives_the_dataset_that_its_file_gives(
    prepare: Prepare,
    hub: Hub,
    tiny_tokenizer: Path,
    tmp_path: Path,
    given: str,
    category: str,
    name: str,
    data: bytes,
) -> None:
    prepare(given)
    assert written(tmp_path / "out") == from_file(tiny_tokenizer, tmp_path, category, name, data)
    manifest = json.loads((tmp_path / "out/llmforge.json").read_text())
    assert list(manifest["metrics"]["ledger"]["categories"]) == [category]
    hub.requests.clear()
    if given == "org/lines":
        prepare(given, "again")
        assert not [request for request in hub.requests if "/resolve/" in request]
        assert written(tmp_path / "out") == written(tmp_path / "again")


@pytest.mark.parametrize(
    ("given", "breaking", "category", "name"),
    [
        ("org/lines", "data/train.jsonl", "lines", "a.jsonl"),
        ("org/rows", "data/train-00000-of-00001.parquet", "rows", "a.parquet"),
    ],
)
def test_a_connection_that_breaks_loses_and_doubles_nothing(
    prepare: Prepare,
    hub: Hub,
    tiny_tokenizer: Path,
    tmp_path: Path,
    given: str,
    breaking: str,
    category: str,
    name: str,
) -> None:
    expected = from_file(tiny_tokenizer, tmp_path, category, name, {**NEW, **ROWS}[breaking])
    hub.breaking, hub.breaks = breaking, 1
    prepare(given)
    assert hub.breaks == 0
    assert written(tmp_path / "out") == expected


def test_a_connection_that_does_not_come_back_leaves_nothing_and_the_same_command_goes_on(
    prepare: Prepare, hub: Hub, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    hub.breaking, hub.breaks, hub.forbids = "data/train.jsonl", 1, True
    refused = prepare("org/lines", code=1).stderr.splitlines()
    assert refused[-1].startswith("error: org/lines cannot be downloaded")
    assert not [line for line in refused[:-1] if line.startswith("error")]
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert not (tmp_path / "out").exists()
    hub.forbids = False
    prepare("org/lines")
    assert written(tmp_path / "out") == from_file(
        tiny_tokenizer, tmp_path, "lines", "a.jsonl", NEW["data/train.jsonl"]
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            "org/none",
            "org/none is neither a path nor a dataset on the Hub that you can read",
        ),
        ("org/lines@v9", "org/lines@v9: this dataset has no branch, tag or commit v9"),
        (f"org/lines@{'0' * 40}", f"'{'0' * 40}' doesn't exist for dataset 'org/lines'"),
        ("org/lines:nothing", "Bad split: nothing. Available splits: ['train', 'test']"),
        ("org/lines:en:train", "'en' not found. Available: ['all', 'zh']"),
    ],
)
def test_what_the_hub_does_not_have_is_one_sentence(
    prepare: Prepare, tmp_path: Path, given: str, sentence: str
) -> None:
    (refused,) = prepare(given, code=1).stderr.splitlines()
    assert refused.startswith(f"error: {given}")
    assert sentence in refused
    assert not (tmp_path / "out").exists()
