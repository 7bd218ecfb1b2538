"""gigatoken as the encoder of whole blocks: all documents in one call, and their ids framed as they are kept.

A block goes to gigatoken as one text, with noncharacters of Unicode where documents begin and end. Its
definition of the tokenizer has these as added tokens, with the ids of bos and eos, so what comes back needs
no more than cutting. It has no special token, so text that spells one stays text.
"""

import contextlib
import ctypes
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llmforge.tokenizer.bytelevel import byte_to_character
from llmforge.tokenizer.loading import definition_text

# The marks of the end of a document, and of its beginning: one for each token that stands there.
END, BEGINS = "\ufdd1", ("\ufdd0", *map(chr, range(0xFDD2, 0xFDF0)))
# Of a byte-level tokenizer gigatoken remembers the words of all calls and their ids, as long as it lives: 5 to 10
# bytes for each of Chinese verse, whose lines are its words, less than one for code. When its memory has grown by
# this much, or after so much text where that cannot be known, a new one takes its place, in a fifth of a second.
REMEMBERED_BYTES = 72 << 20
REMEMBERED_TEXT = 16 << 20
LOOKED_AT_TEXT = 4 << 20  # its memory is looked at after so much text, as that takes some 5 ms
DIGITS = "0123456789"
NO_ID = 2**31 - 1
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Framing:
    """How the tokenizer is put to gigatoken: ids of the marks (`prefix_ids` before a document) and the `size` of the
    tokenizer. Of one that puts every digit by itself, `numbers` are the characters besides 0 to 9 that are digits to it;
    to gigatoken they have the ids from `first_number` on.
    """

    prefix_ids: Sequence[int]
    eos_id: int
    size: int
    numbers: str = ""
    first_number: int = NO_ID


class GigatokenEncoder:
    """A tokenizer in gigatoken, from what `framing_definition` made; raises what gigatoken raises for a kind
    that it does not know. `own_ids` gives the tokenizer's own ids of a text. Not for several threads at once.
    """

    def __init__(self, definition: str, framing: Framing, own_ids: Callable[[str], Sequence[int]]) -> None:
        self.definition, self.framing, self.own_ids = definition, framing, own_ids
        self.number_ids: dict[int, Int32] = {}
        self.looked_at = 0
        self.prefix_ids, self.eos_id = list(framing.prefix_ids), framing.eos_id
        self.between = END + "".join(BEGINS[: len(self.prefix_ids)])
        self._start()

    def another(self) -> "GigatokenEncoder":
        """One of the same tokenizer, for another thread."""
        return GigatokenEncoder(self.definition, self.framing, self.own_ids)

    def encode(self, texts: pa.StringArray) -> tuple[Int32, Int64, Int64] | None:
        """Flat int32 ids of `texts`, `prefix + tokens + eos` each, int64 offsets (n + 1), and the documents that
        the tokenizer itself has to encode; on this thread.

        None where gigatoken does not keep the documents apart.
        """
        import pyarrow.compute as pc

        doubtful = np.zeros(len(texts), np.bool_)
        if self.framing.numbers:  # those that are new to this Python's Unicode
            unheard = rf"[^\P{{N}}{DIGITS}{self.framing.numbers}]"
            doubtful |= np.asarray(pc.match_substring_regex(texts, unheard))
        found = self._encode(texts)
        if found is None:
            marked = pc.match_substring_regex(texts, f"[{END}{''.join(BEGINS)}]")
            doubtful |= np.asarray(marked)
            found = self._encode(pc.if_else(marked, "", texts))
            if found is None:
                return None
        ids, offsets = found
        unknown = np.flatnonzero((ids >= self.framing.size) & (ids < self.framing.first_number))
        doubtful[np.searchsorted(offsets, unknown, side="right") - 1] = True
        return *self._with_numbers(ids, offsets), np.flatnonzero(doubtful)

    def _with_numbers(self, ids: Int32, offsets: Int64) -> tuple[Int32, Int64]:
        """`ids` with the tokenizer's own ids of every number in the place of the one that gigatoken has for it: the number
        stands by itself, so they depend on nothing else.
        """
        places = np.flatnonzero(ids >= self.framing.first_number)
        if not len(places):
            return ids, offsets
        found, kinds = np.unique(ids[places] - self.framing.first_number, return_inverse=True)
        for number in set(found.tolist()) - self.number_ids.keys():
            self.number_ids[number] = np.array(self.own_ids(self.framing.numbers[number]), np.int32)
        spelled = [self.number_ids[number] for number in found.tolist()]
        sizes = np.array([len(one) for one in spelled], np.int64)
        counts = np.ones(len(ids), np.int64)
        counts[places] = sizes[kinds]
        begins = np.append(0, np.cumsum(counts))
        result = np.repeat(ids, counts)
        lengths = sizes[kinds]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        own = np.concatenate(spelled)[np.repeat((np.cumsum(sizes) - sizes)[kinds], lengths) + within]
        result[np.repeat(begins[places], lengths) + within] = own
        return result, begins[offsets]

    def _encode(self, texts: pa.StringArray) -> tuple[Int32, Int64] | None:
        """`encode` where no text holds one of the marks."""
        import pyarrow.compute as pc
        from gigatoken.gigatoken_rs import BytesSource, PadTruncate

        if self.remembers and self.seen - self.looked_at >= LOOKED_AT_TEXT:
            self.looked_at = self.seen
            grown = _heap_bytes() - self.heap_before
            if grown > REMEMBERED_BYTES or (not grown and self.seen > REMEMBERED_TEXT):
                self._start()
        nothing = pa.array([""])
        joined = pa.concat_arrays([nothing, texts, nothing])
        lists = pa.ListArray.from_arrays(pa.array([0, len(joined)], pa.int32()), joined)
        data = pc.binary_join(lists, self.between).buffers()[2]
        first, last = len(END.encode()), len(self.between.encode()) - len(END.encode())
        source = BytesSource([data.slice(first, data.size - first - last).to_pybytes()])
        # Of all its ways this alone gives an array without importing a library of arrays; one row is not padded.
        rows, _ = self.backend.encode_batch_padded(source, PadTruncate(0), parallel=False)
        ids = rows[0].view(np.int32)
        self.seen += data.size
        before = self.prefix_ids.count(self.eos_id)
        ends = np.flatnonzero(ids == self.eos_id)[before :: before + 1] + 1
        offsets = np.append(0, ends)
        if len(ends) != len(texts) or offsets[-1] != len(ids):
            return None
        for mark in {*self.prefix_ids} - {self.eos_id}:
            places = [i for i, one in enumerate(self.prefix_ids) if one == mark]
            if not np.array_equal(np.flatnonzero(ids == mark), np.add.outer(offsets[:-1], places).ravel()):
                return None
        return ids, offsets

    def _start(self) -> None:
        import gigatoken

        self.backend: Any = None  # the memory of the one before goes first
        self.backend = gigatoken.Tokenizer.from_json(self.definition).backend
        self.remembers = isinstance(self.backend, gigatoken.gigatoken_rs.BPETokenizer)
        self.heap_before, self.seen = _heap_bytes(), 0
        self.looked_at = 0


class _Mallinfo2(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def release_freed() -> None:
    """Gives memory that is free to the C library back to the system, where the library can: a worker that has encoded a long
    document waits, while others need it.
    """
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _heap_bytes() -> int:
    """How much of the C library's heap is in use; always 0 where that is not glibc 2.33 or newer."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def framing_definition(
    definition: dict[str, Any], prefix_ids: Sequence[int], eos_id: int, size: int
) -> tuple[str, Framing]:
    """What `GigatokenEncoder` wants, from the `tokenizer.json` of a tokenizer of `size`.

    The marks of a document's beginning and end have the place of the special tokens. Bytes without a piece,
    which gigatoken insists on, get ids from `size` on, and numbers that are digits those behind.
    """
    kept = [token for token in definition["added_tokens"] if not token["special"]]
    marks = {END: eos_id, **dict(zip(BEGINS, prefix_ids, strict=False))}
    model, pre_tokenizer = definition["model"], definition.get("pre_tokenizer")
    cut = _after_digits(pre_tokenizer) if all(digit in model["vocab"] for digit in DIGITS) else None
    numbers, first_number = "", NO_ID
    if cut is not None:
        vocab = dict(model["vocab"])
        missing = [piece for piece in byte_to_character().values() if piece not in vocab]
        model = {**model, "vocab": vocab | {piece: size + i for i, piece in enumerate(missing)}}
        numbers, first_number = other_numbers(), size + len(missing)
        pre_tokenizer, marks = cut, marks | {digit: vocab[digit] for digit in DIGITS}
        marks |= {number: first_number + i for i, number in enumerate(numbers)}
    elif not kept:
        pre_tokenizer = _prefixing(pre_tokenizer)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    changed = {
        "added_tokens": [*kept, *({"id": i, "content": mark, **flags} for mark, i in marks.items())],
        "model": model,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
    }
    text = definition_text({**definition, **changed})
    return text, Framing(prefix_ids, eos_id, size, numbers, first_number)


def other_numbers() -> str:
    """The characters that Unicode calls numbers, besides 0 to 9."""
    every = map(chr, range(0x80, sys.maxunicode + 1))
    return "".join(one for one in every if unicodedata.category(one)[0] == "N")


def _after_digits(pre_tokenizer: Any) -> Any:
    """What a byte-level `pre_tokenizer` like SmolLM2's does after it has put every digit by itself; None for
    others.

    gigatoken knows no such step, but an added token stands by itself too: all numbers become such.
    """
    steps = (pre_tokenizer or {}).get("pretokenizers", [])
    if len(steps) == 2 and steps[0].get("individual_digits") and steps[1]["type"] == "ByteLevel":
        return steps[1]
    return None


def _prefixing(pre_tokenizer: Any) -> Any:
    """`pre_tokenizer` with the space that goes before a text before every document of the block.

    To Metaspace's "first" a block is one text; where no added token cuts a document, "always" does the same.
    """
    if isinstance(pre_tokenizer, dict):
        if pre_tokenizer.get("prepend_scheme") == "first":
            return {**pre_tokenizer, "prepend_scheme": "always"}
        if "pretokenizers" in pre_tokenizer:
            inner = [_prefixing(one) for one in pre_tokenizer["pretokenizers"]]
            return {**pre_tokenizer, "pretokenizers": inner}
    return pre_tokenizer
