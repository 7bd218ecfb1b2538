"""The category of a row: that of all its documents, or `mixed`; and rows that several categories share."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llmforge.dataset.packing import splice

MIXED = "mixed"
Int64 = npt.NDArray[np.int64]


def row_categories(pieces: pa.ListArray) -> tuple[Int64, list[str]]:
    """(rows,) int64 the category of each row as an index of the names, and those; `pieces` is `seq_categories`."""
    if not len(pieces):
        return np.zeros(0, np.int64), []
    encoded = pieces.flatten().dictionary_encode()
    code, names = np.asarray(encoded.indices).astype(np.int64), encoded.dictionary.to_pylist()
    begins = np.append(0, np.cumsum(np.asarray(pieces.value_lengths())))[:-1]
    lowest, highest = np.minimum.reduceat(code, begins), np.maximum.reduceat(code, begins)
    several = lowest != highest
    if several.any():
        names = [*names, *([] if MIXED in names else [MIXED])]
        lowest = np.where(several, names.index(MIXED), lowest)
    return lowest, names


def join_rows(batches: Sequence[pa.RecordBatch], max_length: int) -> pa.RecordBatch:
    """The rows of `batches` joined, as many as fit into `max_length` tokens, by best fit; each stays whole."""
    rows = pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
    lengths = np.asarray(rows.column("input_ids").value_lengths()).astype(np.int64)
    joined = splice(lengths, max_length, "best-fit")
    rows = rows.take(pa.array(joined.document))
    columns = []
    for column in rows.columns:
        ends = np.cumsum(np.asarray(column.value_lengths()))[joined.ends - 1]
        offsets = pa.array(np.append(0, ends).astype(np.int32))
        columns.append(pa.ListArray.from_arrays(offsets, column.flatten()))
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema)
