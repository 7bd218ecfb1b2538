"""Documents into rows of at most `max_length` tokens, knowing only their lengths. No token is dropped.

    best-fit   pieces by falling length, each into the fullest row that still has space (arXiv:2404.10830); fewest rows
    greedy     in order; a piece that does not fit closes the row
    concat     one stream cut every `max_length` tokens; every row full, documents cut wherever a row ends
    one        every piece is a row, for models that cannot keep documents of a row apart

best-fit, greedy and one cut only the documents that are longer than a row.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

import numpy as np
import numpy.typing as npt

from llmforge.dataset.options import ONE, Packing

SPLICES: tuple[str, ...] = get_args(Packing)

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Pieces row by row: `document` (m,), `start` (m,) in the document, `length` (m,); `ends` (rows,) cuts
    them in rows.

    All int64; `ends[r]` is the number of pieces in rows 0 to r.
    """

    document: Int64
    start: Int64
    length: Int64
    ends: Int64


def splice(lengths: Int64, max_length: int, kind: str) -> Rows:
    """The rows of documents of `lengths` (each at least 1), as a pure function of the arguments."""
    if kind == "concat":
        return _concat(lengths, max_length)
    document, start, length = cut(lengths, max_length)
    if kind == ONE:
        return Rows(document, start, length, np.arange(1, len(length) + 1))
    row = _best_fit(length, max_length) if kind == "best-fit" else _greedy(length, max_length)
    order = np.argsort(row, kind="stable")
    counts = np.bincount(row, minlength=0)
    return Rows(document[order], start[order], length[order], np.cumsum(counts))


def splice_by_category(lengths: Int64, category: Int64, max_length: int, kind: str) -> Rows:
    """The same for documents that are sorted by `category` (n,), each category by itself."""
    begins = np.flatnonzero(np.diff(category, prepend=-1))
    parts = [splice(part, max_length, kind) for part in np.split(lengths, begins[1:])]
    pieces = np.cumsum([0, *(len(part.length) for part in parts)])
    return Rows(
        np.concatenate([part.document + begin for part, begin in zip(parts, begins, strict=True)]),
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.length for part in parts]),
        np.concatenate([part.ends + before for part, before in zip(parts, pieces, strict=False)]),
    )


def in_order(rows: Rows, order: Int64) -> Rows:
    """The rows with the numbers `order`, in that order."""
    counts = np.diff(rows.ends, prepend=0)[order]
    ends = np.cumsum(counts)
    # Of each row, its pieces: those before it end where it begins.
    pieces = np.arange(ends[-1] if len(ends) else 0) + np.repeat(rows.ends[order] - ends, counts)
    return Rows(rows.document[pieces], rows.start[pieces], rows.length[pieces], ends)


def cut(lengths: Int64, max_length: int) -> tuple[Int64, Int64, Int64]:
    """Pieces of at most `max_length`: (document, start, length).

    A remainder of one token would stand alone, with nothing to predict it from, so the piece before gives it
    one.
    """
    count = -(-lengths // max_length)
    document = np.repeat(np.arange(len(lengths)), count)
    first = np.cumsum(count) - count
    start = (np.arange(len(document)) - first[document]) * max_length
    lonely = (lengths % max_length == 1) & (count > 1) & (max_length > 2)
    start[(first + count - 1)[lonely]] -= 1
    following = np.append(start[1:], 0)
    following[first + count - 1] = lengths
    return document, start, following - start


def _concat(lengths: Int64, max_length: int) -> Rows:
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.union1d(ends, np.append(np.arange(max_length, total, max_length), total)) if total else ends
    begins = np.append(0, cuts[:-1])[: len(cuts)]
    document = np.searchsorted(ends, begins, side="right")
    row = begins // max_length
    counts = np.bincount(row) if len(row) else np.zeros(0, np.int64)
    return Rows(document, begins - (ends - lengths)[document], cuts - begins, np.cumsum(counts))


def _greedy(length: Int64, max_length: int) -> Int64:
    ends = np.cumsum(length)
    row = np.empty(len(length), np.int64)
    begin = number = 0
    while begin < len(length):
        before = int(ends[begin] - length[begin])
        end = int(np.searchsorted(ends, before + max_length, side="right"))
        row[begin:end] = number
        begin, number = end, number + 1
    return row


def _best_fit(length: Int64, max_length: int) -> Int64:
    """The row of each piece; rows are numbered in the order of their first piece.

    Pieces of one length are placed together: the fullest rows with space take as many of them as fit.
    """
    order = np.argsort(-length, kind="stable")
    sizes = length[order]
    cuts = np.append(np.flatnonzero(np.diff(sizes, prepend=0)), len(sizes)).tolist()
    open_rows: dict[int, list[int]] = {}  # space left -> rows
    rooms: list[int] = []  # the keys of open_rows, rising
    opened = 0
    taking: list[int] = []  # in `order`, rows and how many pieces each takes
    counts: list[int] = []

    def keep(room: int, rows: list[int]) -> None:
        if room and rows:
            if room not in open_rows:
                insort(rooms, room)
                open_rows[room] = []
            open_rows[room] += rows

    for begin, end in pairwise(cuts):
        size = int(sizes[begin])
        while begin < end:
            at = bisect_left(rooms, size)
            if at < len(rooms):
                room = rooms[at]
                rows = open_rows[room]
            else:
                room = max_length
                rows = list(range(opened, opened - (-(end - begin) // (room // size))))
                opened += len(rows)
            each = room // size
            used = min(len(rows), -(-(end - begin) // each))
            taken = min(end - begin, used * each)
            begin += taken
            last = each - (used * each - taken)  # how many pieces the last of these rows took
            taking += rows[:used]
            counts += [each] * (used - 1) + [last]
            if at < len(rooms):
                if used == len(rows):
                    del open_rows[room], rooms[at]
                else:
                    open_rows[room] = rows[used:]
            keep(room - each * size, rows[: used - 1] if last < each else rows[:used])
            if last < each:
                keep(room - last * size, [rows[used - 1]])
    row = np.empty(len(length), np.int64)
    row[order] = np.repeat(np.array(taking, np.int64), np.array(counts, np.int64))
    first = np.empty(opened, np.int64)
    first[row[::-1]] = np.arange(len(row))[::-1]  # of several pieces of a row the last one that is assigned
    rank = np.empty(opened, np.int64)
    rank[np.argsort(first)] = np.arange(opened)
    return rank[row]
