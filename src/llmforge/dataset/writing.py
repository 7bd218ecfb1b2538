"""Stage 3: one bin becomes one part, a directory that `datasets.load_from_disk` opens, straight from flat
arrays.

The documents of a bin are taken in the order of their keys, a window at a time; each window is spliced by
itself, so memory is that of a window whatever the size of the bin.
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

from llmforge.dataset.encoding import TOKEN_BYTES
from llmforge.dataset.packing import Rows, splice
from llmforge.dataset.planning import PLACED, bin_path
from llmforge.dataset.shards import shard_path
from llmforge.errors import UserError
from llmforge.steps import fingerprint

DATA_FILE = "data-00000-of-00001.arrow"
IGNORED = -100
WINDOW_TOKENS = 2 << 20
WINDOW_ROWS = 256
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

    A part that is there already is left as it is.
    """
    target = part_path(Path(parts), number)
    figures_path = Path(parts) / f".{target.name}.json"
    if target.is_dir() and figures_path.is_file():
        figures: dict[str, Any] = json.loads(figures_path.read_text(encoding="utf-8"))
        return figures
    temporary = Path(parts) / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    source = bin_path(Path(settings.bins), number)
    placed = np.fromfile(source, PLACED) if source.is_file() else np.zeros(0, PLACED)
    placed = placed.take(np.argsort(placed["key"], kind="stable"))
    tally = _Tally(len(settings.categories))
    with pa.OSFile(str(temporary / DATA_FILE), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as stream:
        for window in _windows(placed, settings.max_length):
            batch = _window_batch(settings, window, tally)
            if batch.num_rows:
                stream.write_batch(batch)
            del batch  # before the next window is made
    data = fingerprint(temporary / DATA_FILE)
    _write_dataset_files(temporary, data)
    figures = {**tally.figures(settings.categories), "fingerprint": data}
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
        self.rows = self.valid_tokens = self.bytes = 0
        self.documents = np.zeros(categories, np.int64)
        self.tokens = np.zeros(categories, np.int64)
        self.masked_documents = np.zeros(categories, np.int64)
        self.masked_tokens = np.zeros(categories, np.int64)
        self.masked: list[tuple[int, int, int, int]] = []

    def figures(self, categories: list[str]) -> dict[str, Any]:
        def named(documents: Int64, tokens: Int64) -> dict[str, list[int]]:
            both = zip(categories, documents.tolist(), tokens.tolist(), strict=True)
            return {name: [d, t] for name, d, t in both if d or t}

        return {
            "rows": self.rows,
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
    for begin, end in _runs(window):
        yield placed[begin:end]


def _runs(values: npt.NDArray[Any]) -> Iterator[tuple[int, int]]:
    """(begin, end) of every run of equal `values`."""
    if len(values):
        cuts = (np.flatnonzero(np.diff(values)) + 1).tolist()
        yield from zip([0, *cuts], [*cuts, len(values)], strict=True)


def _window_batch(settings: PartSettings, documents: npt.NDArray[np.void], tally: _Tally) -> pa.RecordBatch:
    lengths = documents["tokens"].astype(np.int64)
    rows = splice(lengths, settings.max_length, settings.splice)
    masked = np.clip(documents["masked"].astype(np.int64)[rows.document] - rows.start, 0, rows.length)
    rows, masked = _without_untrainable(rows, masked, documents, tally)
    piece_ends = np.cumsum(rows.length)
    ids = _gather(settings, documents, rows)
    labels = ids.copy() if masked.any() else ids
    for piece in np.flatnonzero(masked).tolist():
        begin = int(piece_ends[piece] - rows.length[piece])
        labels[begin : begin + int(masked[piece])] = IGNORED
    seq_bytes = _piece_bytes(settings, documents, rows, masked, ids, piece_ends)
    categories = documents["category"][rows.document]
    tally.rows += len(rows.ends)
    tally.valid_tokens += int((rows.length - np.maximum(masked, 1)).clip(0).sum())
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
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _without_untrainable(
    rows: Rows, masked: Int64, documents: npt.NDArray[np.void], tally: _Tally
) -> tuple[Rows, Int64]:
    """`rows` less those in which nothing could be trained: a loss over no label at all is not a number.

    The first token of a piece has nothing before it to be predicted from, so it does not count.
    """
    row = np.repeat(np.arange(len(rows.ends)), np.diff(rows.ends, prepend=0))
    trained = np.bincount(row, (rows.length - np.maximum(masked, 1)).clip(0), len(rows.ends))
    if (trained > 0).all():
        return rows, masked
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
    return Rows(rows.document[kept], rows.start[kept], rows.length[kept], ends), masked[kept]


def _gather(settings: PartSettings, documents: npt.NDArray[np.void], rows: Rows) -> Int32:
    """The ids of all pieces, row by row.

    They are read in the order in which they lie on disk, neighbours at once, and then put into the order of
    the rows. No file is mapped: pages once read would count as this process's memory.
    """
    at = documents["start"][rows.document] + rows.start
    chunk = documents["chunk"][rows.document]
    order = np.lexsort((at, chunk))
    at, chunk, length = at[order], chunk[order], rows.length[order]
    ends = np.cumsum(length)
    read = np.empty(int(ends[-1]) if len(ends) else 0, settings.ids_type)
    view, width = memoryview(read.view(np.uint8)), read.itemsize  # type: ignore[arg-type]
    apart = np.flatnonzero((at[1:] != (at + length)[:-1]) | (chunk[1:] != chunk[:-1])) + 1
    begins = np.append(0, apart)[: len(at)]
    last_ends = ends[np.append(apart, len(at))[: len(begins)] - 1]
    portions = (begins, last_ends, (ends - length)[begins])
    for first, last in _runs(chunk[begins]):
        path = shard_path(Path(settings.shards), int(chunk[begins[first]]), "ids")
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for i in range(first, last):
                wanted = view[int(portions[2][i]) * width : int(portions[1][i]) * width]
                _read_all(descriptor, wanted, int(at[begins[i]]) * width, path)
        finally:
            os.close(descriptor)
    # Arrow moves a binary value in one go, seven times as fast as a list of the same bytes.
    buffers = [None, pa.py_buffer(np.append(0, ends) * width), pa.py_buffer(read)]
    pieces = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(ends), buffers)
    where = np.empty(len(order), np.int64)
    where[order] = np.arange(len(order))
    rows_ids = np.frombuffer(pieces.take(pa.array(where)).buffers()[2] or b"", read.dtype)[: len(read)]
    return rows_ids.astype(np.int32, copy=False)


def _read_all(descriptor: int, wanted: memoryview, offset: int, path: Path) -> None:
    done = 0
    while done < len(wanted):
        got = os.preadv(descriptor, [wanted[done:]], offset + done)
        if not got:
            raise UserError(f"{path} was cut off while it was in use; run the same command again.")
        done += got


def _piece_bytes(
    settings: PartSettings,
    documents: npt.NDArray[np.void],
    rows: Rows,
    masked: Int64,
    ids: Int32,
    piece_ends: Int64,
) -> Int64:
    """The UTF-8 bytes of each piece's unmasked text; the pieces of a document sum to the document's."""
    result = documents["bytes"].astype(np.int64)[rows.document]
    split = np.flatnonzero(rows.length != documents["tokens"][rows.document])
    if len(split) == 0:
        return result
    table = np.load(Path(settings.encoder) / TOKEN_BYTES)
    for piece in split.tolist():
        end = int(piece_ends[piece])
        result[piece] = table[ids[end - int(rows.length[piece] - masked[piece]) : end]].sum()
    # A space that the tokenizer put before the text is no text; what a normalizer changed is put down to the
    # last piece.
    order = split[np.lexsort((rows.start[split], rows.document[split]))]
    for begin, end in _runs(rows.document[order]):
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
