"""Documents of many segments, trained and not: from the reader to the labels of rows."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmforge.corpus import Block, Chunk, ReadOptions, Segment, Spans
from llmforge.corpus.formats import FORMATS
from llmforge.corpus.formats.base import Format
from llmforge.dataset.encoding import Encoder, save_framed, save_reference
from llmforge.dataset.packed import PackedDataset
from llmforge.dataset.packing import splice
from llmforge.dataset.shards import read_summary
from llmforge.dataset.untrained import inside, of_pieces, predicted_tokens
from llmforge.errors import UserError
from llmforge.evaluate.texts import load_corpora
from llmforge.tokenizer import load

from .conftest import write_jsonl

Turns = list[tuple[str, bool]]
WORDS = ["the cat ", "sat", " on", "公园", "1998", "\n", " two  spaces ", "é", "▁x", "散步。"]
TURNS = st.lists(st.tuples(st.sampled_from(WORDS), st.booleans()), min_size=1, max_size=8)


def block_of(documents: list[Turns]) -> Block:
    spans: list[list[tuple[int, int]]] = []
    for turns in documents:
        found: list[tuple[int, int]] = []
        at = 0
        for text, trained in turns:
            end = at + len(text.encode())
            if not trained and found and found[-1][1] == at:
                found[-1] = (found[-1][0], end)
            elif not trained:
                found.append((at, end))
            at = end
        spans.append(found)
    text = pa.array(["".join(text for text, _ in turns) for turns in documents], pa.string())
    category = pa.array(["a"] * len(documents)).dictionary_encode()
    return Block(text, Spans.of(spans), category, np.arange(1, len(documents) + 1), [], len(documents), 1)


def merged(turns: Turns) -> list[Segment]:
    found: list[Segment] = []
    for text, trained in turns:
        if found and found[-1].trained == trained:
            text = found.pop().text + text
        found.append(Segment(text, trained))
    return found


@given(st.lists(TURNS, min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_a_block_gives_segments_back(documents: list[Turns]) -> None:
    block = block_of(documents)
    for i, turns in enumerate(documents):
        assert list(block.segments(i)) == merged(turns)
        assert block.document(i, "file").text == "".join(text for text, _ in turns)
    order = np.arange(len(documents))[::-1]
    assert [block.take(order).segments(i) for i in range(len(documents))] == [
        block.segments(i) for i in order.tolist()
    ]


@pytest.fixture(scope="module")
def encoders(
    byte_level: Path, llama_like: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], list[tuple[Any, Encoder]]]:
    made = []
    for directory in (byte_level, llama_like):
        tokenizer, path = load(directory), tmp_path_factory.mktemp("encoder")
        save_framed(tokenizer, path)
        save_reference(tokenizer, path)
        made += [(tokenizer, Encoder(path, backend)) for backend in ("gigatoken", "tokenizers")]
    return lambda: made  # hypothesis prints the arguments of a failing example


@given(st.lists(TURNS, min_size=1, max_size=5))
@example([[("▁x", False), ("▁x", True), ("\n", False)]])  # a normalizer changes how long the text is
@settings(max_examples=150, deadline=None)
def test_a_token_is_untrained_where_all_of_it_is(encoders: Callable[[], Any], documents: list[Turns]) -> None:
    block = block_of(documents)
    for tokenizer, encoder in encoders():
        encoded, head = encoder.encode(block), len(tokenizer.prefix_ids)
        for i, turns in enumerate(documents):
            text = "".join(part for part, _ in turns)
            offsets = tokenizer.backend.encode(text, add_special_tokens=False).offsets
            ends = np.cumsum([len(segment.text) for segment in merged(turns)]).tolist()
            spans = [
                (end - len(s.text), end) for s, end in zip(merged(turns), ends, strict=True) if not s.trained
            ]
            untrained = np.zeros(len(offsets) + head + 1, np.bool_)
            for begin, end in encoded.untrained.pairs(i):
                assert not untrained[begin:end].any()
                untrained[begin:end] = True
            assert untrained[:head].tolist() == [not turns[0][1]] * head
            assert not untrained[-1]
            cut = False  # a character that is spelled by several tokens
            for number, (begin, end) in enumerate(offsets):
                cut |= sum(one == (begin, end) for one in offsets) > 1
                if not cut:
                    wanted = any(a <= begin and end <= b for a, b in spans)
                    assert untrained[head + number] == wanted, (text, number, offsets, spans)
            assert 0 <= encoded.trained_bytes[i] <= len(text.encode())


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=9), min_size=1),
    st.integers(2, 12),
)
@settings(max_examples=150, deadline=None)
def test_pieces_have_the_spans_of_their_documents(
    documents: list[list[tuple[int, bool]]], max_length: int
) -> None:
    flags = [np.concatenate([np.full(n, trained) for n, trained in parts]) for parts in documents]
    spans = []
    for one in flags:
        edges = np.flatnonzero(np.diff(np.concatenate([[True], one, [True]]).astype(np.int8)))
        spans.append([(int(a), int(b)) for a, b in edges.reshape(-1, 2)])
    rows = splice(np.array([len(one) for one in flags]), max_length, "best-fit")
    pieces = of_pieces(Spans.of(spans), rows)
    ends = np.cumsum(rows.length)
    found = inside(pieces, ends - rows.length, int(ends[-1]))
    for piece, (document, start, length) in enumerate(
        zip(rows.document, rows.start, rows.length, strict=True)
    ):
        wanted = flags[document][start : start + length]
        assert (found[ends[piece] - length : ends[piece]] == ~wanted).all()
        assert predicted_tokens(pieces, rows)[piece] == wanted[1:].sum()


def test_shards_of_the_layout_before_are_made_again(prepare: Callable[..., Any], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/x.jsonl", [{"source": "the cat ", "target": f"sat {i}"} for i in range(50)])
    whole = prepare(tmp_path / "in", name="whole")
    prepare(tmp_path / "in", name="old", shard=(0, 1))
    (summary,) = (tmp_path / "old.shards/0-of-1").glob("000000.json")
    made = json.loads(summary.read_text())
    assert read_summary(summary.parent, 0) is not None
    summary.write_text(json.dumps({name: value for name, value in made.items() if name != "layout"}))
    assert read_summary(summary.parent, 0) is None
    with pytest.raises(UserError, match=r"do not belong to this corpus.*run all --shard commands again"):
        prepare(tmp_path / "in", name="old", merge=True)
    prepare(tmp_path / "in", name="old", shard=(0, 1), overwrite=True)
    merged = prepare(tmp_path / "in", name="old", merge=True)
    assert merged.manifest.outputs["fingerprint"] == whole.manifest.outputs["fingerprint"]


def read_turns(chunk: Chunk, options: ReadOptions, block_bytes: int) -> Iterator[Block]:
    """A format of the test: each line is a list of [text, trained]."""
    lines = Path(chunk.path).read_text(encoding="utf-8").splitlines()
    yield block_of([[(text, trained) for text, trained in json.loads(line)] for line in lines])


@pytest.mark.parametrize("max_length", [16, 512])
def test_conversations_become_rows_with_labels_on_what_is_trained(
    prepare: Callable[..., Any],
    tmp_path: Path,
    byte_level: Path,
    llama_like: Path,
    monkeypatch: pytest.MonkeyPatch,
    max_length: int,
) -> None:
    monkeypatch.setitem(FORMATS, ".turns", Format((".turns",), read_turns))
    chance = np.random.default_rng(0)
    turns = [
        [
            (f"{'ask' if k % 2 == 0 else 'say'} {i}: {'cat ' * int(chance.integers(1, 9))}\n", k % 2 == 1)
            for k in range(int(chance.integers(1, 7)))
        ]
        for i in range(40)
    ]
    turns[0] = [("everything here is read only", False)]
    write_jsonl(tmp_path / "in/x.turns", turns)
    for directory in (byte_level, llama_like):
        tokenizer = load(directory)
        output = prepare(tmp_path / "in", name=directory.name, tokenizer=directory, max_length=max_length)
        data = PackedDataset([output.output])
        trained = untrained = 0
        labelled: list[int] = []
        for row in data.rows(range(len(data))):
            kept = row.labels != -100
            assert (row.labels[kept] == row.input_ids[kept]).all()
            text = tokenizer.decode([i for i in row.labels[kept].tolist() if i != tokenizer.eos_id])
            # "ask" is one text in all documents, and never trained, whatever row it came to.
            assert "ask" not in text
            trained += int(kept.sum())
            untrained += int((~kept).sum())
            labelled += row.labels[kept].tolist()
        assert untrained
        ledger = output.manifest.metrics["ledger"]
        assert trained + untrained == ledger["written"]["tokens"]
        if max_length == 512:  # no piece is left out
            wanted = sorted(
                int(i)
                for one in turns
                for text, is_trained in one
                if is_trained
                for i in load(directory).encode([text])[0]
            )
            assert len([i for i in labelled if i != tokenizer.eos_id]) == pytest.approx(len(wanted), rel=0.1)
            bytes_trained = sum(len(text.encode()) for one in turns for text, kind in one if kind)
            assert data.bytes == pytest.approx(bytes_trained, rel=0.1)
            assert output.manifest.metrics["valid_tokens"] <= trained


def test_held_out_conversations_keep_their_text_and_segments(
    prepare: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, ".turns", Format((".turns",), read_turns))
    turns: list[Turns] = [
        [("trained alone", True)],
        [("read ", False), ("and learned", True)],
        [("learned ", True), ("and read", False)],
        [("read alone", False)],
        [("ask ", False), ("say ", True), ("ask again ", False), ("say again", True)],
    ]
    write_jsonl(tmp_path / "in/x.turns", turns)
    output = prepare(tmp_path / "in", holdout=1.0).output
    (file,) = (output / "holdout").iterdir()
    held = [json.loads(line) for line in file.read_text().splitlines()]
    assert [list(one) for one in held[:2]] == [["target", "category"], ["source", "target", "category"]]
    for one, given_turns in zip(held[2:], turns[2:], strict=True):
        assert [(part["text"], part["trained"]) for part in one["segments"]] == given_turns
    (corpus,) = load_corpora([str(file)], None, None)
    assert corpus.documents == ["".join(text for text, _ in one) for one in turns]
