"""The tokens of pieces that are not trained, from those of their documents."""

import numpy as np
import numpy.typing as npt

from llmforge.corpus import Spans
from llmforge.dataset.packing import Rows

Int64 = npt.NDArray[np.int64]


def of_pieces(spans: Spans, rows: Rows) -> Spans:
    """What of the `spans` of documents lies in each piece, counted from its beginning."""
    if not len(spans):
        return Spans.none(len(rows.document))
    own = spans.take(rows.document)
    piece = own.documents
    begins = np.maximum(own.begins - rows.start[piece], 0)
    ends = np.minimum(own.ends - rows.start[piece], rows.length[piece])
    keep = ends > begins
    counts = np.bincount(piece[keep], minlength=len(rows.document))
    return Spans(np.append(0, np.cumsum(counts)), begins[keep], ends[keep])


def predicted_tokens(untrained: Spans, rows: Rows) -> Int64:
    """(pieces,) int64: how many tokens of each a loss is taken over. The first of a piece has nothing before it to be
    predicted from.
    """
    masked = np.zeros(len(rows.length), np.int64)
    first = np.ones(len(rows.length), np.int64)
    if len(untrained):
        piece = untrained.documents
        masked = np.bincount(piece, untrained.ends - untrained.begins, len(masked)).astype(np.int64)
        first[piece[untrained.begins == 0]] = 0
    return rows.length - masked - first


def inside(spans: Spans, starts: Int64, count: int) -> npt.NDArray[np.bool_]:
    """(count,) bool: which of the tokens of pieces that begin at `starts` (pieces,) lie inside their spans."""
    change = np.zeros(count + 1, np.int8)
    start = starts[spans.documents]
    np.add.at(change, start + spans.begins, 1)
    np.add.at(change, start + spans.ends, -1)
    found: npt.NDArray[np.bool_] = np.cumsum(change[:-1], dtype=np.int8) > 0
    return found
