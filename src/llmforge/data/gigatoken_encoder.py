"""gigatoken as the encoder of whole blocks: all documents in one call, and their ids framed as they are kept.

A block goes to gigatoken as one text, with noncharacters of Unicode where documents begin and end. Its
definition of the tokenizer has these as added tokens, with the ids of bos and eos, so what comes back needs
no more than cutting. It has no special token, so text that spells one stays text.
"""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

BEGIN, END = "\ufdd0", "\ufdd1"
# Of a byte-level tokenizer gigatoken remembers the words of all calls and their ids, as long as it lives; a new
# one takes a tenth of a second.
REMEMBERED_BYTES = 24 << 20
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


class GigatokenEncoder:
    """A tokenizer in gigatoken, from what `framing_definition` made; raises what gigatoken raises for a kind
    that it does not know.
    """

    def __init__(self, definition: str, bos_id: int | None, eos_id: int) -> None:
        self.definition, self.bos_id, self.eos_id = definition, bos_id, eos_id
        self.between = END if bos_id is None else END + BEGIN
        self._start()

    def encode(self, texts: pa.StringArray) -> tuple[Int32, Int64] | None:
        """Flat int32 ids of `texts`, `bos + tokens + eos` each, and int64 offsets (n + 1); on this thread.

        None where a text holds one of the noncharacters.
        """
        if self.remembers and self.seen > REMEMBERED_BYTES:
            self._start()
        from gigatoken.gigatoken_rs import BytesSource, PadTruncate

        nothing = pa.array([""])
        joined = pa.concat_arrays([nothing, texts, nothing])
        lists = pa.ListArray.from_arrays(pa.array([0, len(joined)], pa.int32()), joined)
        data = pc.binary_join(lists, self.between).buffers()[2]
        first, last = len(END.encode()), len(self.between.encode()) - len(END.encode())
        source = BytesSource([data.slice(first, data.size - first - last).to_pybytes()])
        # Of all its ways this alone gives an array without importing a library of arrays, and one row is not padded.
        rows, _ = self.backend.encode_batch_padded(source, PadTruncate(0), parallel=False)
        ids = rows[0].view(np.int32)
        self.seen += data.size
        ends = np.flatnonzero(ids == self.eos_id) + 1
        if self.bos_id == self.eos_id:
            ends = ends[1::2]
        offsets = np.append(0, ends)
        if len(ends) != len(texts) or offsets[-1] != len(ids):
            return None
        begins = np.flatnonzero(ids == self.bos_id)
        if self.bos_id not in (None, self.eos_id) and not np.array_equal(begins, offsets[:-1]):
            return None
        return ids, offsets

    def _start(self) -> None:
        import gigatoken

        self.backend: Any = None  # the memory of the one before goes first
        self.backend = gigatoken.Tokenizer.from_json(self.definition).backend
        self.remembers = isinstance(self.backend, gigatoken.gigatoken_rs.BPETokenizer)
        self.seen = 0


def framing_definition(definition: dict[str, Any], bos_id: int | None, eos_id: int) -> str:
    """A `tokenizer.json` with the marks of a document's beginning and end in place of its special tokens."""
    kept = [token for token in definition["added_tokens"] if not token["special"]]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    marks = {END: eos_id} if bos_id is None else {END: eos_id, BEGIN: bos_id}
    added = [{"id": i, "content": mark, "special": True, **flags} for mark, i in marks.items()]
    changed = {**definition, "added_tokens": [*kept, *added], "post_processor": None}
    if not kept:
        changed["pre_tokenizer"] = _prefixing(definition.get("pre_tokenizer"))
    return json.dumps(changed, ensure_ascii=False)


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
