"""Documents to token ids: by `gigatoken` where it gives the exact ids of the tokenizer, else by the tokenizer
itself.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tokenizers

from llmforge.data.reading import Block
from llmforge.tokenizer import Tokenizer

DEFINITION, TOKEN_BYTES, SETTINGS = "tokenizer.json", "token_bytes.npy", "encoder.json"
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """The documents of a block: `bos + tokens + eos` each, in flat `ids` (int32), cut by `offsets` (int64, n
    + 1).

    `masked` (n,) counts the leading tokens that are not trained because they end inside `source`;
    `trained_bytes` (n,) the UTF-8 bytes that the others stand for.
    """

    ids: Int32
    offsets: Int64
    masked: Int64
    trained_bytes: Int64


class Encoder:
    """Encodes blocks as `save_encoder` set it up: a directory, so that a worker starts in a moment."""

    def __init__(self, directory: Path) -> None:
        settings = json.loads((directory / SETTINGS).read_text(encoding="utf-8"))
        self.bos_id: int | None = settings["bos_id"]
        self.eos_id: int = settings["eos_id"]
        self.definition = directory / DEFINITION
        self.token_bytes = np.load(directory / TOKEN_BYTES)
        self.gigatoken = None
        if settings["backend"] == "gigatoken":
            self.gigatoken = load_gigatoken(self.definition.read_text(encoding="utf-8"))
        # An id that no text may become: seen in a text's ids, it shows that a special token was read as
        # control.
        self.control = np.zeros(len(self.token_bytes), np.bool_)
        self.control[settings["special_ids"]] = True

    @cached_property
    def reference(self) -> tokenizers.Tokenizer:
        """The tokenizer itself."""
        backend = tokenizers.Tokenizer.from_file(str(self.definition))
        backend.encode_special_tokens = True
        return backend

    def encode(self, block: Block) -> Encoded:
        """The documents of `block`, in order."""
        ids, offsets = self._text_ids(block)
        masked, trained_bytes = self._source_and_bytes(block, ids, offsets)
        head = 0 if self.bos_id is None else 1
        n = len(block)
        framed_offsets = offsets + np.arange(n + 1) * (head + 1)
        framed = np.empty(framed_offsets[-1], np.int32)
        text = np.ones(len(framed), np.bool_)
        if head:
            framed[framed_offsets[:-1]] = self.bos_id
            text[framed_offsets[:-1]] = False
        framed[framed_offsets[1:] - 1] = self.eos_id
        text[framed_offsets[1:] - 1] = False
        framed[text] = ids
        return Encoded(
            framed, framed_offsets, masked + np.where(block.source_bytes > 0, head, 0), trained_bytes
        )

    def _text_ids(self, block: Block) -> tuple[Int32, Int64]:
        if self.gigatoken is None:
            return self._reference_ids(block.text.to_pylist())
        ids, offsets = gigatoken_ids(self.gigatoken, block.text.cast(pa.binary()).to_pylist())
        wrong = np.flatnonzero(self.control[ids])
        if len(wrong) == 0:
            return ids, offsets
        # gigatoken knows no way to read special tokens as text: the few documents that spell one are encoded
        # again.
        spelling = np.unique(np.searchsorted(offsets, wrong, side="right") - 1)
        again, again_offsets = self._reference_ids([block.text[int(i)].as_py() for i in spelling])
        parts, at = [], 0
        for k, document in enumerate(spelling.tolist()):
            parts += [ids[at : offsets[document]], again[again_offsets[k] : again_offsets[k + 1]]]
            at = offsets[document + 1]
        lengths = np.diff(offsets)
        lengths[spelling] = np.diff(again_offsets)
        return np.concatenate([*parts, ids[at:]]), np.append(0, np.cumsum(lengths))

    def _reference_ids(self, texts: list[str]) -> tuple[Int32, Int64]:
        encodings = self.reference.encode_batch_fast(texts, add_special_tokens=False)
        ids = [np.asarray(encoding.ids, np.int32) for encoding in encodings]
        return np.concatenate(ids), np.append(0, np.cumsum([len(one) for one in ids]))

    def _source_and_bytes(self, block: Block, ids: Int32, offsets: Int64) -> tuple[Int64, Int64]:
        """Per document: how many tokens end inside `source`, and how many bytes of text the others stand
        for.
        """
        text_bytes = np.diff(block.text_offsets).astype(np.int64)
        masked = np.zeros(len(block), np.int64)
        trained = text_bytes.copy()
        with_source = np.flatnonzero(block.source_bytes)
        if len(with_source) == 0:
            return masked, trained
        ends = np.append(0, np.cumsum(self.token_bytes[ids], dtype=np.int64))
        spelled = ends[offsets[1:]] - ends[offsets[:-1]]
        # Sentencepiece puts one space before a text; whatever else differs is the work of a normalizer.
        added = np.clip(spelled - text_bytes, 0, 1)
        inside = ends[offsets[:-1]] + added + block.source_bytes
        masked[with_source] = (np.searchsorted(ends, inside, side="right") - 1 - offsets[:-1])[with_source]
        changed = with_source[(spelled != text_bytes + added)[with_source]]
        for document in changed.tolist():
            masked[document] = self._masked_by_offsets(block, document)
        masked = np.minimum(masked, np.diff(offsets))
        covered = ends[offsets[:-1] + masked] - ends[offsets[:-1]] - np.where(masked > 0, added, 0)
        trained[with_source] = (text_bytes - covered)[with_source]
        trained[changed] = (text_bytes - block.source_bytes)[changed]
        return masked, trained

    def _masked_by_offsets(self, block: Block, document: int) -> int:
        """Where a normalizer changed the bytes, the tokenizer itself says what part of the text each token
        covers.
        """
        text = block.text[document].as_py()
        source = len(text.encode()[: block.source_bytes[document]].decode())
        encoding = self.reference.encode(text, add_special_tokens=False)
        inside = [end <= source for _, end in encoding.offsets]
        return inside.index(False) if False in inside else len(inside)


def save_encoder(tokenizer: Tokenizer, backend: str, directory: Path) -> None:
    """Writes what `Encoder` reads; `backend` is "gigatoken" or "tokenizers" (`choose_backend`)."""
    settings = {
        "backend": backend,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "special_ids": sorted(tokenizer.special_ids),
    }
    directory.mkdir(exist_ok=True)
    (directory / DEFINITION).write_text(definition_of(tokenizer), encoding="utf-8")
    np.save(directory / TOKEN_BYTES, np.array([len(one) for one in tokenizer.token_bytes()], np.int32))
    (directory / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")


def definition_of(tokenizer: Tokenizer) -> str:
    """The `tokenizer.json` of a tokenizer, whatever files it came from."""
    return json.dumps(tokenizer.definition.json, ensure_ascii=False)


def load_gigatoken(definition: str) -> Any:
    """A tokenizer in gigatoken; raises what gigatoken raises for a kind that it does not know."""
    import gigatoken

    return gigatoken.Tokenizer.from_json(definition)


def gigatoken_ids(encoder: Any, texts: Sequence[bytes]) -> tuple[Int32, Int64]:
    """Flat ids and offsets of `texts`, on the calling thread."""
    if not texts:
        return np.zeros(0, np.int32), np.zeros(1, np.int64)
    layout = encoder.encode_batch(list(texts), parallel=False).layout
    offsets = np.asarray(layout.offsets.data, np.int64)
    ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]].view(np.int32)
    return ids, offsets - offsets[0]


@dataclass(frozen=True)
class Choice:
    """Which encoder runs: `backend`, and why; `documents` and `bytes` of the sample that it was compared
    on.
    """

    backend: str
    reason: str
    documents: int = 0
    bytes: int = 0


def choose_backend(tokenizer: Tokenizer, sample: Sequence[str]) -> Choice:
    """gigatoken where every document of `sample` gets the tokenizer's own ids from it.

    Documents in which gigatoken reads a special token are left out: `Encoder` never takes its ids for them.
    """
    size = sum(len(text.encode()) for text in sample)
    try:
        # As lists: only they come without a library of arrays that takes longer to import than this takes.
        found = load_gigatoken(definition_of(tokenizer)).encode_batch_list(
            [text.encode() for text in sample], parallel=False
        )
    except ImportError:
        return Choice("tokenizers", "gigatoken is not installed")
    except (
        Exception
    ) as error:  # a young library: any failure of its own means that the tokenizer does the work
        return Choice(
            "tokenizers", f"gigatoken cannot read this tokenizer ({' '.join(str(error).split())[:200]})"
        )
    expected, offsets = tokenizer.encode(sample)
    special = tokenizer.special_ids
    compared = differing = 0
    for i, mine in enumerate(found):
        if special.isdisjoint(mine):
            compared += 1
            differing += mine != expected[offsets[i] : offsets[i + 1]].tolist()
    if differing:
        reason = f"gigatoken gave other ids for {differing} of {compared} sampled documents"
        return Choice("tokenizers", reason, compared, size)
    return Choice(
        "gigatoken", f"gigatoken gave the exact ids of {compared} sampled documents", compared, size
    )
