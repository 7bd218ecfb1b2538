"""Stage 3: one bin becomes one part, a directory that `datasets.load_from_disk` opens, straight from flat
arrays.

The documents of a bin are taken in the order of their categories and keys, a window at a time; each window is spliced
by itself, so memory is that of a window whatever the size of the bin. A row holds one category. In each window the
least full row of every category waits until the end: two of them that fit into one row share it.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llmforge.corpus import Spans
from llmforge.dataset.categories import join_rows, row_categories
from llmforge.dataset.encoding import TOKEN_BYTES
from llmforge.dataset.options import ONE
from llmforge.dataset.packing import Rows, in_order, splice_by_category
from llmforge.dataset.planning import PLACED, bin_path
from llmforge.dataset.shard_files import read_ids, read_spans, runs
from llmforge.dataset.untrained import inside, of_pieces, predicted_tokens
from llmforge.steps import fingerprint
from llmforge.steps.checksums import checksum_of

DATA_FILE = "data-00000-of-00001.arrow"
IGNORED = -100
WINDOW_TOKENS = 2 << 20
WINDOW_ROWS = 256
MOST_WAITING_BYTES = 16 << 20
ONLY_MASKED = "only masked labels"
SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("seq_lengths", pa.list_(pa.int32())),
        ("seq_categories", pa.list_(pa.string())),
        ("seq_bytes", pa.list_(pa.int32())),
    ]
)

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PartSettings:
    """All that decides a part's bytes besides the documents of its bin."""

    shards: str
    bins: str
    categories: list[str]
    max_length: int
    splice: str
    encoder: str
    ids_type: str


def write_part(settings: PartSettings, number: int, parts: str) -> dict[str, Any]:
    """Writes `parts/part-<number>` in one move and returns its figures, which `parts/.part-<number>.json`
    keeps.

    A part that exists already is left as it is.
    """
    target = part_path(Path(parts), number)
    figures_path = Path(parts) / f".{target.name}.json"
    source = bin_path(Path(settings.bins), number)
    placed = np.fromfile(source, PLACED) if source.is_file() else np.zeros(0, PLACED)
    placed = placed.take(np.lexsort((placed["key"], placed["category"])))
    documents = checksum_of(placed.tobytes())
    if target.is_dir() and figures_path.is_file():
        figures: dict[str, Any] = json.loads(figures_path.read_text(encoding="utf-8"))
        if figures.get("documents") == documents:
            return figures
        shutil.rmtree(target)  # begun by a version that puts other documents into the bin
    temporary = Path(parts) / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    tally = _Tally(len(settings.categories))
    several = len(placed) > 0 and placed["category"][0] != placed["category"][-1]
    with pa.OSFile(str(temporary / DATA_FILE), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as stream:

        def write(batch: pa.RecordBatch) -> None:
            if batch.num_rows:
                tally.add_rows(batch)
                stream.write_batch(batch)

        waiting: list[pa.RecordBatch] = []
        for window in _windows(placed, settings.max_length):
            batch, closed = _window_batch(settings, window, tally, several and settings.splice != ONE)
            write(batch.slice(0, closed))
            if closed < batch.num_rows:
                # A copy, so that the rest of the window can go before the next one is made.
                waiting.append(batch.take(pa.array(np.arange(closed, batch.num_rows))))
            del batch
            if sum(rows.nbytes for rows in waiting) > MOST_WAITING_BYTES:
                write(join_rows(waiting, settings.max_length))
                waiting = []
        if waiting:
            write(join_rows(waiting, settings.max_length))
    data = fingerprint(temporary / DATA_FILE)
    _write_dataset_files(temporary, data)
    figures = {**tally.figures(settings.categories), "fingerprint": data, "documents": documents}
    held = figures_path.with_suffix(f".json.{os.getpid()}.tmp")
    held.write_text(json.dumps(figures, ensure_ascii=False), encoding="utf-8")
    held.replace(figures_path)
    if target.is_dir():
        shutil.rmtree(temporary)
    else:
        temporary.rename(target)
    return figures


def part_path(parts: Path, number: int) -> Path:
    """The directory of a part."""
    return parts / f"part-{number:05d}"


class _Tally:
    """What became of a part's documents, by category."""

    def __init__(self, categories: int) -> None:
        self.valid_tokens = self.bytes = 0
        self.rows: dict[str, list[int]] = {}  # category of the row: rows and tokens
        self.documents = np.zeros(categories, np.int64)
        self.tokens = np.zeros(categories, np.int64)
        self.masked_documents = np.zeros(categories, np.int64)
        self.masked_tokens = np.zeros(categories, np.int64)
        self.masked: list[tuple[int, int, int, int]] = []

    def add_rows(self, batch: pa.RecordBatch) -> None:
        code, names = row_categories(batch.column("seq_categories"))
        lengths = np.asarray(batch.column("input_ids").value_lengths())
        rows, tokens = np.bincount(code), np.bincount(code, lengths)
        for number in np.flatnonzero(rows).tolist():
            total = self.rows.setdefault(names[number], [0, 0])
            total[0] += int(rows[number])
            total[1] += int(tokens[number])

    def figures(self, categories: list[str]) -> dict[str, Any]:
        def named(documents: Int64, tokens: Int64) -> dict[str, list[int]]:
            both = zip(categories, documents.tolist(), tokens.tolist(), strict=True)
            return {name: [d, t] for name, d, t in both if d or t}

        return {
            "rows": sum(rows for rows, _ in self.rows.values()),
            "categories": {
                name: {"rows": rows, "tokens": tokens} for name, (rows, tokens) in sorted(self.rows.items())
            },
            "tokens": int(self.tokens.sum()),
            "valid_tokens": self.valid_tokens,
            "bytes": self.bytes,
            "written": named(self.documents, self.tokens),
            "only_masked": named(self.masked_documents, self.masked_tokens),
            "rejected": self.masked,
        }


def _windows(placed: npt.NDArray[np.void], max_length: int) -> Iterator[npt.NDArray[np.void]]:
    size = max(WINDOW_TOKENS, WINDOW_ROWS * max_length)
    window = np.cumsum(placed["tokens"], dtype=np.int64) // size
    for begin, end in runs(window):
        yield placed[begin:end]


def _window_batch(
    settings: PartSettings, documents: npt.NDArray[np.void], tally: _Tally, sharing: bool
) -> tuple[pa.RecordBatch, int]:
    """The rows of `documents` (sorted by category), and how many of them are closed; where there is `sharing` the others,
    the least full of each category, wait to be joined.
    """
    lengths, category = documents["tokens"].astype(np.int64), documents["category"].astype(np.int64)
    rows = splice_by_category(lengths, category, settings.max_length, settings.splice)
    spans = read_spans(Path(settings.shards), documents)
    rows = _without_untrainable(rows, spans, documents, tally)
    closed = len(rows.ends)
    if sharing:
        rows, closed = _least_full_last(rows, category, settings.max_length)
    untrained = of_pieces(spans, rows)
    piece_ends = np.cumsum(rows.length)
    ids = read_ids(Path(settings.shards), settings.ids_type, documents, rows)
    labels = ids
    if len(untrained):
        labels = ids.copy()
        labels[inside(untrained, piece_ends - rows.length, len(ids))] = IGNORED
    seq_bytes = _piece_bytes(settings, documents, rows, ids, labels, piece_ends)
    categories = category[rows.document]
    tally.valid_tokens += int(predicted_tokens(untrained, rows).sum())
    tally.bytes += int(seq_bytes.sum())
    tally.tokens += np.bincount(categories, rows.length, len(tally.tokens)).astype(np.int64)
    written = np.zeros(len(documents), np.bool_)
    written[rows.document] = True
    tally.documents += np.bincount(documents["category"][written], minlength=len(tally.documents))

    def lists(values: pa.Array, ends: Int64) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(np.append(0, ends).astype(np.int32)), values)

    row_ends = piece_ends[rows.ends - 1]
    names = pa.array(settings.categories, pa.string()).take(pa.array(categories.astype(np.int32)))
    columns = [
        lists(pa.array(ids), row_ends),
        lists(pa.array(labels), row_ends),
        lists(pa.array(rows.length.astype(np.int32)), rows.ends),
        lists(names, rows.ends),
        lists(pa.array(seq_bytes.astype(np.int32)), rows.ends),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA), closed


def _least_full_last(rows: Rows, category: Int64, max_length: int) -> tuple[Rows, int]:
    """`rows` with the least full row of each category, unless it is full, at the end, and how many come before."""
    begins = np.append(0, rows.ends)[:-1]
    if not len(begins):
        return rows, 0
    fill = np.add.reduceat(rows.length, begins)
    own = category[rows.document[begins]]
    by_fill = np.lexsort((fill, own))
    least = by_fill[np.diff(own[by_fill], prepend=-1) > 0]
    last = fill < max_length
    last &= np.isin(np.arange(len(fill)), least)
    order = np.concatenate([np.flatnonzero(~last), np.flatnonzero(last)])
    return in_order(rows, order), int((~last).sum())


def _without_untrainable(rows: Rows, spans: Spans, documents: npt.NDArray[np.void], tally: _Tally) -> Rows:
    """`rows` less those in which nothing could be trained: a loss over no label at all is not a number."""
    row = np.repeat(np.arange(len(rows.ends)), np.diff(rows.ends, prepend=0))
    trained = np.bincount(row, predicted_tokens(of_pieces(spans, rows), rows), len(rows.ends))
    if (trained > 0).all():
        return rows
    kept = (trained > 0)[row]
    lost, category = rows.document[~kept], documents["category"]
    tally.masked_tokens += np.bincount(category[lost], rows.length[~kept], len(tally.tokens)).astype(np.int64)
    gone = np.setdiff1d(lost, rows.document[kept])
    tally.masked_documents += np.bincount(category[gone], minlength=len(tally.documents))
    for document in gone.tolist():
        one = documents[document]
        tally.masked.append((int(one["chunk"]), int(one["line"]), int(one["tokens"]), int(one["category"])))
    counts = np.bincount(row[kept], minlength=len(rows.ends))
    ends = np.cumsum(counts[counts > 0])
    return Rows(rows.document[kept], rows.start[kept], rows.length[kept], ends)


def _piece_bytes(
    settings: PartSettings,
    documents: npt.NDArray[np.void],
    rows: Rows,
    ids: Int32,
    labels: Int32,
    piece_ends: Int64,
) -> Int64:
    """The UTF-8 bytes of each piece's unmasked text; the pieces of a document sum to the document's."""
    result = documents["bytes"].astype(np.int64)[rows.document]
    split = np.flatnonzero(rows.length != documents["tokens"][rows.document])
    if len(split) == 0:
        return result
    table = np.load(Path(settings.encoder) / TOKEN_BYTES)
    for piece in split.tolist():
        own = slice(int(piece_ends[piece] - rows.length[piece]), int(piece_ends[piece]))
        trained = ids[own] if labels is ids else ids[own][labels[own] != IGNORED]
        result[piece] = table.take(trained).sum()
    # A space that the tokenizer put before the text is no text; what a normalizer changed is put down to the
    # last piece.
    order = split[np.lexsort((rows.start[split], rows.document[split]))]
    for begin, end in runs(rows.document[order]):
        pieces = order[begin:end]
        total = int(documents["bytes"][rows.document[pieces[0]]])
        if int(rows.length[pieces].sum()) == int(documents["tokens"][rows.document[pieces[0]]]):
            excess = int(result[pieces].sum()) - total
            for piece in pieces[np.flatnonzero(result[pieces])] if excess == 1 else pieces[::-1]:
                taken = min(excess, int(result[piece]))
                result[piece] -= taken
                excess -= taken
                if excess <= 0:
                    break
    return result


def _write_dataset_files(directory: Path, data: str) -> None:
    """The two files beside the data (whose fingerprint is `data`) by which `datasets.load_from_disk` knows a
    dataset; the features are the schema's.
    """
    state: dict[str, Any] = {
        "_data_files": [{"filename": DATA_FILE}],
        "_fingerprint": data.removeprefix("xxh3:")[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (directory / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
    (directory / "dataset_info.json").write_text(
        json.dumps({"description": "", "citation": ""}, indent=2), encoding="utf-8"
    )
