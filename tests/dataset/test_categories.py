"""Rows of one category: packed by themselves, and what does not fill a row shares one."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.dataset.categories import MIXED, join_rows, row_categories
from llmforge.dataset.inspection import inspect_dataset
from llmforge.dataset.inspection_text import as_html, as_text
from llmforge.dataset.packed import PackedDataset
from llmforge.dataset.packing import ONE, SPLICES, in_order, splice, splice_by_category
from llmforge.dataset.writing import write_part

from .conftest import write_jsonl

Prepare = Callable[..., Any]
LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=40)


@given(st.lists(LENGTHS, min_size=1, max_size=4), st.integers(2, 40), st.sampled_from([*SPLICES, ONE]))
@settings(max_examples=200, deadline=None)
def test_each_category_is_spliced_as_if_alone(lengths: list[list[int]], max_length: int, kind: str) -> None:
    category = np.repeat(np.arange(len(lengths)), [len(one) for one in lengths])
    rows = splice_by_category(np.concatenate(lengths).astype(np.int64), category, max_length, kind)
    piece = document = row = 0
    for one in lengths:
        alone = splice(np.array(one), max_length, kind)
        pieces = slice(piece, piece + len(alone.length))
        assert (rows.document[pieces] == alone.document + document).all()
        assert (rows.start[pieces] == alone.start).all()
        assert (rows.length[pieces] == alone.length).all()
        assert (rows.ends[row : row + len(alone.ends)] == alone.ends + piece).all()
        piece, document, row = piece + len(alone.length), document + len(one), row + len(alone.ends)
    assert row == len(rows.ends)


@given(LENGTHS, st.integers(2, 40), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_rows_in_another_order_keep_their_pieces(lengths: list[int], max_length: int, chance: Any) -> None:
    rows = splice(np.array(lengths), max_length, "best-fit")
    order = np.array(chance.sample(range(len(rows.ends)), len(rows.ends)))

    def pieces(which: Any) -> list[list[tuple[int, ...]]]:
        both = list(zip(which.document.tolist(), which.start.tolist(), which.length.tolist(), strict=True))
        return [both[a:b] for a, b in zip([0, *which.ends[:-1]], which.ends, strict=True)]

    assert pieces(in_order(rows, order)) == [pieces(rows)[i] for i in order]


def batch(rows: list[list[tuple[int, str]]]) -> pa.RecordBatch:
    """Rows of pieces (tokens, category); the ids of row r are r."""
    return pa.RecordBatch.from_pydict(
        {
            "input_ids": [[r] * sum(n for n, _ in row) for r, row in enumerate(rows)],
            "seq_lengths": [[n for n, _ in row] for row in rows],
            "seq_categories": [[name for _, name in row] for row in rows],
        }
    )


def test_the_category_of_a_row_and_rows_joined() -> None:
    rows = [[(3, "a"), (4, "a")], [(4, "b")], [(2, "a"), (1, "b")], [(6, "c")]]
    code, names = row_categories(batch(rows).column("seq_categories").slice(0, 4))
    assert [names[c] for c in code] == ["a", "b", MIXED, "c"]
    code, names = row_categories(batch(rows).column("seq_categories").slice(1, 1))
    assert [names[c] for c in code] == ["b"]
    joined = join_rows([batch(rows[:2]), batch(rows[2:])], 11).to_pydict()
    assert joined["seq_categories"] == [["a", "a", "b"], ["a", "b", "c"]]
    assert joined["seq_lengths"] == [[3, 4, 4], [2, 1, 6]]
    assert [len(ids) for ids in joined["input_ids"]] == [11, 9]
    assert row_categories(pa.array([], pa.list_(pa.string())))[0].tolist() == []


def corpus(path: Path, documents: dict[str, int]) -> Path:
    chance = np.random.default_rng(0)
    for name, count in documents.items():
        texts = [" ".join(["cat", "garden", "1998"] * int(chance.integers(1, 9))) for _ in range(count)]
        write_jsonl(path / name / "x.jsonl", [{"target": text} for text in texts])
    return path


@pytest.mark.parametrize("kind", SPLICES)
def test_rows_hold_one_category_and_few_are_shared(prepare: Prepare, tmp_path: Path, kind: str) -> None:
    documents = {"a": 120, "b": 60, "c": 7, "mine": 1}
    finished = prepare(corpus(tmp_path / "in", documents), packing=kind, max_length=256)
    figures = finished.manifest.metrics["parts"]
    found = inspect_dataset([finished.output])
    shown = [bucket["rows_by_category"] for bucket in found["buckets"]]
    assert shown == [{n: c["rows"] for n, c in part["categories"].items()} for part in figures]
    assert f"a {shown[0]['a']}, b {shown[0]['b']}, " in as_text(found)
    row = f"<tr><td class=t>0</td><td>{shown[0]['a']}</td><td>{shown[0]['b']}</td>"
    assert row in as_html(found)
    for part, expected in zip(sorted((finished.output / "arrow").iterdir()), figures, strict=True):
        data = PackedDataset([part])
        rows = data.rows(range(len(data)))
        names = ["+".join(sorted(set(row.seq_categories))) for row in rows]
        counted: dict[str, Counter[str]] = {"rows": Counter(), "tokens": Counter()}
        for name, row in zip(names, rows, strict=True):
            counted["rows"][MIXED if "+" in name else name] += 1
            counted["tokens"][MIXED if "+" in name else name] += len(row.input_ids)
        assert expected["categories"] == {
            name: {what: counted[what][name] for what in counted} for name in sorted(counted["rows"])
        }
        shared = [name for name in names if "+" in name]
        assert 1 <= len(shared) <= len(documents) / 2
        assert expected["categories"]["a"]["rows"] > expected["categories"].get("c", {"rows": 0})["rows"]
        # Of each category at most one row is less full than it could be, and no two of those fit into one.
        least = [min(len(row.input_ids) for row, n in zip(rows, names, strict=True) if n == name)
                 for name in set(names)]  # fmt: skip
        assert all(one + other > 256 for one, other in combinations(least, 2))
        where = data.by_category
        assert {name: len(found) for name, found in where.items()} == dict(counted["rows"])
        assert {name: found.tokens for name, found in where.items()} == dict(counted["tokens"])
        for name, found in where.items():
            numbers = [found.bins[0].numbers(np.arange(len(found.bins[0])))]
            assert {MIXED if "+" in names[i] else names[i] for i in np.concatenate(numbers)} == {name}


def test_bins_and_datasets_follow_one_another(prepare: Prepare, tmp_path: Path) -> None:
    one = prepare(corpus(tmp_path / "in", {"a": 90, "b": 40}), name="one").output
    two = prepare(corpus(tmp_path / "more", {"b": 50, "c": 40}), name="two", bins=2).output
    data = PackedDataset([one, two])
    names = [set(row.seq_categories) for row in data.rows(range(len(data)))]
    assert list(data.by_category) == ["a", "b", "c", MIXED] or MIXED not in data.by_category
    for name in "abc":
        bins = data.by_category[name].bins
        assert [len(rows) > 0 for rows in bins] == [name != "c"] * 3 + [name != "a"] * 2
        numbers = np.concatenate([rows.numbers(np.arange(len(rows))) for rows in bins])
        assert numbers.tolist() == [i for i, found in enumerate(names) if found == {name}]


def test_a_category_of_the_name_of_shared_rows_is_said(
    prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = corpus(tmp_path / "in", {"a": 9, MIXED: 9})
    data = PackedDataset([prepare(source).output])
    assert "documents have the category 'mixed'" in capsys.readouterr().err
    assert set(data.by_category) <= {"a", MIXED}
    prepare(source / MIXED, name="alone")
    assert "documents have the category" not in capsys.readouterr().err


def test_one_document_a_row_shares_nothing(prepare: Prepare, tmp_path: Path) -> None:
    finished = prepare(corpus(tmp_path / "in", {"a": 9, "b": 9}), documents_per_row=1)
    assert all(MIXED not in part["categories"] for part in finished.manifest.metrics["parts"])


def test_a_part_of_a_version_that_mixed_categories_is_written_again(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that an older version began and this one ends has no rows of the older one."""

    def as_before(settings: Any, number: int, parts: str) -> dict[str, Any]:
        figures = Path(parts) / f".part-{number:05d}.json"
        part = Path(parts) / f"part-{number:05d}"
        part.mkdir()
        (part / "data-00000-of-00001.arrow").write_bytes(b"as it was")
        figures.write_text(json.dumps({"rows": 1}))
        return write_part(settings, number, parts)

    source = corpus(tmp_path / "in", {"a": 9, "b": 9})
    whole = prepare(source, name="whole")
    monkeypatch.setattr("llmforge.dataset.assemble.write_part", as_before)
    mended = prepare(source, name="mended")
    assert mended.manifest.outputs["fingerprint"] == whole.manifest.outputs["fingerprint"]
