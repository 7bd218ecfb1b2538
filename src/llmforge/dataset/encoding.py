"""Documents to token ids: by `gigatoken` where it gives the exact ids of the tokenizer, else by the tokenizer
itself.
"""

import fcntl
import json
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tokenizers

from llmforge.corpus import Block, Spans
from llmforge.dataset.gigatoken_encoder import (
    Framing,
    GigatokenEncoder,
    framing_definition,
    release_freed,
)
from llmforge.tokenizer import Tokenizer
from llmforge.tokenizer.cuts import Cuts
from llmforge.tokenizer.loading import backend_of_text, definition_text

DEFINITION, FRAMED, FRAMING = "tokenizer.json", "gigatoken.json", "framing.json"
UNMERGED = "unmerged.json"  # the definition without merges: all that `Cuts` asks for
TOKEN_BYTES = "token_bytes.npy"
# A document of more is encoded in parts of so many bytes, by several threads at once, each with a gigatoken of its own
# (some 100 MB), which takes 3 to 5 ms to begin a part; `tokenizers` takes 130 bytes of memory for one of text.
LONG_BYTES, MOST_THREADS = 8 << 20, 8
PART_BYTES = {"gigatoken": 2 << 20, "tokenizers": 512 << 10}
PORTION_BYTES = 1 << 20
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """The documents of a block: `prefix + tokens + eos` each, in flat `ids` (int32), cut by `offsets` (int64, n
    + 1).

    `untrained` are the tokens that lie inside segments that are not trained, and a prefix before one or of several
    tokens; `trained_bytes` (n,) the UTF-8 bytes that the others stand for.
    """

    ids: Int32
    offsets: Int64
    untrained: Spans
    trained_bytes: Int64


@dataclass(frozen=True)
class Attempt:
    """What gigatoken made of the documents of a `sample`: flat `ids` and `offsets` as `Encoder.ids` has them,
    `count` of the documents by itself; or the `refusal`, why it could not begin.
    """

    sample: list[str]
    ids: Int32
    offsets: Int64
    count: int
    refusal: str = ""


class Encoder:
    """Encodes blocks with what `save_framed` and `save_reference` wrote, so that a worker starts in a moment.

    `backend` is "tokenizers" or "gigatoken"; to begin, that needs what `save_framed` wrote alone. Where
    gigatoken cannot read the tokenizer, `refusal` says why, and the tokenizer itself encodes.

    The parts of a long document are encoded on as many threads as `save_framed` was told, where no other process does so
    with the directory.
    """

    def __init__(self, directory: Path, backend: str) -> None:
        saved = json.loads((directory / FRAMING).read_text(encoding="utf-8"))
        self.threads: int = saved.pop("threads")
        framing = Framing(**saved)
        self.directory = directory
        self.prefix_ids, self.eos_id = framing.prefix_ids, framing.eos_id
        self.gigatoken: GigatokenEncoder | None = None
        self.refusal = ""
        if backend == "gigatoken":
            definition = (directory / FRAMED).read_text(encoding="utf-8")
            try:
                gigatoken = GigatokenEncoder(definition, framing, self._own_ids)
                gigatoken.encode(pa.array(["a"]))
                self.gigatoken = gigatoken
            except ImportError:
                self.refusal = "gigatoken is not installed"
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # of a young library, whose panics are not even an Exception
                what = " ".join(str(error).split())[:200]
                self.refusal = f"gigatoken cannot read this tokenizer ({what})"

    @cached_property
    def reference(self) -> tokenizers.Tokenizer:
        """The tokenizer itself."""
        return backend_of_text((self.directory / DEFINITION).read_text(encoding="utf-8"), self.directory)

    def _own_ids(self, text: str) -> list[int]:
        ids: list[int] = self.reference.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def token_bytes(self) -> Int32:
        """(size,) int32: how many bytes of text each token stands for."""
        lengths: Int32 = np.load(self.directory / TOKEN_BYTES)
        return lengths

    def encode(self, block: Block) -> Encoded:
        """The documents of `block`, in order."""
        ids, offsets, _ = self.ids(block.text)
        return Encoded(ids, offsets, *self._untrained_and_bytes(block, ids, offsets))

    def ids(self, texts: pa.StringArray) -> tuple[Int32, Int64, int]:
        """Ids and offsets of `texts`, framed, and how many of them gigatoken encoded; long ones part by part."""
        import pyarrow.compute as pc

        lengths = np.asarray(pc.binary_length(texts))
        long = np.flatnonzero(lengths > LONG_BYTES).tolist()
        if not long:
            return self._ids(texts)
        found, begin = [], 0
        for document in long:
            if document > begin:
                found.append(self._ids(texts.slice(begin, document - begin)))
            found.append(self._long_ids(texts.slice(document, 1)))
            begin = document + 1
        if begin < len(texts):
            found.append(self._ids(texts.slice(begin)))
        if len(found) == 1:
            return found[0]
        offsets = np.append(0, np.cumsum(np.concatenate([np.diff(cuts) for _, cuts, _ in found])))
        return np.concatenate([ids for ids, _, _ in found]), offsets, sum(count for _, _, count in found)

    def _long_ids(self, text: pa.StringArray) -> tuple[Int32, Int64, int]:
        """`ids` of one document, from parts of it (`Cuts`), so that memory is that of a few parts besides the ids; of the
        document as a whole where it cannot be cut.
        """
        offsets = np.frombuffer(text.buffers()[1], np.int32)[text.offset : text.offset + 2].tolist()
        data = memoryview(text.buffers()[2])[slice(*offsets)]
        cuts = self.cuts.find(data, PART_BYTES["gigatoken" if self.gigatoken else "tokenizers"])
        if not cuts:
            return self._ids(text)
        # A token for every byte is the most; pages that nothing is written to take no memory. It is not of the heap,
        # by whose growth gigatoken's memory is told.
        most = len(data) + len(self.prefix_ids) + len(cuts) + 2
        joined = np.frombuffer(mmap.mmap(-1, 4 * most), np.int32)
        spare = [self.gigatoken]
        own = threading.local()

        def encode(begin: int, end: int) -> tuple[Int32 | None, bool]:
            if not hasattr(own, "gigatoken"):
                try:
                    own.gigatoken = spare.pop()
                except IndexError:
                    own.gigatoken = self.gigatoken and self.gigatoken.another()
            return self._part_ids(data, begin, end, own.gigatoken)

        length, count = 0, 1
        with (
            _alone(self.directory) as alone,
            ThreadPoolExecutor(self.threads if alone else 1) as pool,
        ):
            for part, encoded in pool.map(encode, [0, *cuts], [*cuts, len(data)]):
                if part is None:
                    pool.shutdown(cancel_futures=True)
                    return self._ids(text)
                joined[length : length + len(part)] = part
                length, count = length + len(part), min(count, int(encoded))
        joined[length] = self.eos_id
        release_freed()
        return joined[: length + 1], np.array([0, length + 1], np.int64), count

    def _part_ids(
        self, data: memoryview, begin: int, end: int, gigatoken: GigatokenEncoder | None
    ) -> tuple[Int32 | None, bool]:
        """The ids of a part of a document, and whether gigatoken encoded it; None where it is no part, which has not been
        seen.
        """
        lead = begin and begin - next(i for i in (1, 2, 3, 4) if data[begin - i] & 0xC0 != 0x80)
        both = pa.array([bytes(data[lead:begin]), bytes(data[lead:end])], pa.binary()).cast(pa.string())
        both = both if begin else both.slice(1)
        ids, ends, encoded = self._ids(both, gigatoken)
        part, before = ids[ends[-2] : ends[-1] - 1], ids[: ends[1] - 1] if begin else ids[:0]
        if not np.array_equal(part[: len(before)], before):
            return None, False
        return part[len(before) :], encoded == len(both)

    @cached_property
    def cuts(self) -> Cuts:
        """Where documents that are long can be cut."""
        return Cuts(json.loads((self.directory / UNMERGED).read_text(encoding="utf-8")))

    def _ids(
        self, texts: pa.StringArray, gigatoken: GigatokenEncoder | None = None
    ) -> tuple[Int32, Int64, int]:
        gigatoken = gigatoken or self.gigatoken
        found = gigatoken.encode(texts) if gigatoken else None
        if found is None:
            return *self.reference_ids(texts), 0
        ids, offsets, doubtful = found
        if len(doubtful):
            ids, offsets = _replaced(
                ids, offsets, doubtful, *self.reference_ids(texts.take(pa.array(doubtful)))
            )
        return ids, offsets, len(texts) - len(doubtful)

    def reference_ids(self, texts: pa.StringArray) -> tuple[Int32, Int64]:
        """The same from the tokenizer itself: ids and offsets of `texts`, framed."""
        import pyarrow.compute as pc

        # A portion at a time: `tokenizers` takes 130 bytes of memory for one of text.
        portion = np.cumsum(np.asarray(pc.binary_length(texts)), dtype=np.int64) // PORTION_BYTES
        found: list[tuple[Int32, Int64]] = []
        for begin, end in pairwise([0, *(np.flatnonzero(np.diff(portion)) + 1).tolist(), len(texts)]):
            some = texts.slice(begin, end - begin).to_pylist()
            found.append(_framed(self.reference, some, self.prefix_ids, self.eos_id))
        lengths = [np.diff(cuts) for _, cuts in found]
        return np.concatenate([ids for ids, _ in found]), np.append(0, np.cumsum(np.concatenate(lengths)))

    def attempt(self, sample: list[str]) -> Attempt:
        """What gigatoken makes of the documents of `sample`."""
        if self.gigatoken is None:
            nothing = np.zeros(0, np.int32)
            return Attempt(sample, nothing, nothing.astype(np.int64), 0, self.refusal)
        return Attempt(sample, *self.ids(pa.array(sample, pa.string())))

    def _untrained_and_bytes(self, block: Block, ids: Int32, offsets: Int64) -> tuple[Spans, Int64]:
        """The tokens that are not trained, by document, and how many bytes of text the others of each stand for.

        A token is not trained where all of it lies inside such a segment. So is the prefix before one, and one of
        several tokens: the first token of a document is never predicted, but those after it would be.
        """
        text_bytes = np.diff(block.text_offsets).astype(np.int64)
        prefix, spans = len(self.prefix_ids), block.untrained
        if not len(spans):
            always = np.full(len(block), prefix if prefix > 1 else 0)
            return Spans.leading(always), text_bytes
        document = spans.documents
        begins, stops = offsets[:-1] + prefix, offsets[1:] - 1
        ends = np.append(0, np.cumsum(self.token_bytes[ids], dtype=np.int64))
        spelled = ends[stops] - ends[begins]
        # Sentencepiece puts one space before a text; whatever else differs is the work of a normalizer.
        added = np.clip(spelled - text_bytes, 0, 1)
        before = (ends[begins] + added)[document]
        first = np.searchsorted(ends, before + spans.begins, side="left")
        first = np.minimum(np.where(spans.begins == 0, begins[document], first), stops[document])
        last = np.minimum(np.searchsorted(ends, before + spans.ends, side="right") - 1, stops[document])
        last = np.maximum(first, last)
        covered = (
            ends[last] - ends[first] - np.where((spans.begins == 0) & (last > first), added[document], 0)
        )
        first, last = first - begins[document], last - begins[document]
        for number in np.unique(document[(spelled != text_bytes + added)[document]]).tolist():
            which = slice(spans.offsets[number], spans.offsets[number + 1])
            first[which], last[which] = self._tokens_inside(block, number)
            covered[which] = (spans.ends - spans.begins)[which]
        trained = text_bytes - np.bincount(document, covered, len(block)).astype(np.int64)
        return _with_prefix(spans, first, last, prefix), trained

    def _tokens_inside(self, block: Block, document: int) -> tuple[list[int], list[int]]:
        """The first token inside each span of a document, and the one behind the last. Where a normalizer changed the
        bytes, the tokenizer itself says what part of the text each token covers.
        """
        text = block.text[document].as_py()
        data = text.encode()
        covered = np.array(self.reference.encode(text, add_special_tokens=False).offsets).reshape(-1, 2)
        first, last = [], []
        for span in block.untrained.pairs(document):
            begin, end = (len(data[:at].decode()) for at in span)
            # From the first that begins inside to the first that ends behind.
            inside = np.append(np.flatnonzero(covered[:, 0] >= begin), len(covered)) if begin else [0]
            behind = np.append(np.flatnonzero(covered[inside[0] :, 1] > end), len(covered) - inside[0])
            first.append(int(inside[0]))
            last.append(int(inside[0] + behind[0]))
        return first, last


def _with_prefix(spans: Spans, first: Int64, last: Int64, prefix: int) -> Spans:
    """Tokens of documents, `first` to `last` (m,) of each of the `spans`, counted behind the prefix, as spans from the
    beginning of the documents; with the prefix where it is not trained.
    """
    leading = np.zeros(len(spans.counts), np.int64)
    if prefix > 1:
        leading[:] = prefix
    at_start = spans.begins == 0
    leading[spans.documents[at_start]] = (last + prefix)[at_start]
    others = ~at_start & (last > first)
    document = np.concatenate([np.flatnonzero(leading), spans.documents[others]])
    begins = np.concatenate([np.zeros(int((leading > 0).sum()), np.int64), (first + prefix)[others]])
    ends = np.concatenate([leading[leading > 0], (last + prefix)[others]])
    order = np.lexsort((begins, document))
    counts = np.bincount(document, minlength=len(leading))
    return Spans(np.append(0, np.cumsum(counts)), begins[order], ends[order])


def _replaced(
    ids: Int32, offsets: Int64, documents: Int64, others: Int32, cuts: Int64
) -> tuple[Int32, Int64]:
    """`ids` with `others`, cut by `cuts`, in the place of those of `documents`."""
    parts, at = [], 0
    for k, document in enumerate(documents.tolist()):
        parts += [ids[at : offsets[document]], others[cuts[k] : cuts[k + 1]]]
        at = offsets[document + 1]
    lengths = np.diff(offsets)
    lengths[documents] = np.diff(cuts)
    return np.concatenate([*parts, ids[at:]]), np.append(0, np.cumsum(lengths))


def _framed(
    backend: tokenizers.Tokenizer, texts: Sequence[str], prefix_ids: Sequence[int], eos_id: int
) -> tuple[Int32, Int64]:
    encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    ids = [np.array([*prefix_ids, *encoding.ids, eos_id], np.int32) for encoding in encodings]
    return np.concatenate([np.zeros(0, np.int32), *ids]), np.append(
        0, np.cumsum([len(one) for one in ids], dtype=np.int64)
    )


@contextmanager
def _alone(directory: Path) -> Iterator[bool]:
    """Whether no other process is in here with `directory`."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = True
    except OSError:
        alone = False
    try:
        yield alone
    finally:
        os.close(descriptor)


def save_framed(tokenizer: Tokenizer, directory: Path, threads: int = 1) -> None:
    """Writes what an `Encoder` needs to begin: the tokenizer for gigatoken, and on how many `threads` one may encode."""
    assert tokenizer.eos_id is not None
    definition = tokenizer.definition.json
    directory.mkdir(parents=True, exist_ok=True)
    framed, framing = framing_definition(definition, tokenizer.prefix_ids, tokenizer.eos_id, tokenizer.size)
    (directory / FRAMED).write_text(framed, encoding="utf-8")
    saved = {**asdict(framing), "threads": min(threads, MOST_THREADS)}
    (directory / FRAMING).write_text(json.dumps(saved), encoding="utf-8")


def save_reference(tokenizer: Tokenizer, directory: Path) -> None:
    """Writes the rest of it: the tokenizer itself, and how many bytes each token stands for. Whether `tokenizers` can
    build the tokenizer shows when its `backend` is asked for.
    """
    definition = tokenizer.definition.json
    unmerged = {**definition, "model": {**definition["model"], "merges": []}}
    for name, value in ((UNMERGED, unmerged), (DEFINITION, definition)):
        (directory / name).write_text(definition_text(value), encoding="utf-8")
    np.save(directory / TOKEN_BYTES, np.array([len(one) for one in tokenizer.token_bytes()], np.int32))


@dataclass(frozen=True)
class Choice:
    """Which encoder runs: `backend`, and why; `documents` and `bytes` of the sample that it was compared
    on.
    """

    backend: str
    reason: str
    documents: int = 0
    bytes: int = 0


def choose_backend(attempt: Attempt, tokenizer: Tokenizer) -> Choice:
    """gigatoken where every document of its `attempt` has the ids that `tokenizer` itself gives it."""
    if attempt.refusal:
        return Choice("tokenizers", attempt.refusal)
    compared = len(attempt.sample), sum(len(text.encode()) for text in attempt.sample)
    if attempt.count == 0:
        return Choice("tokenizers", "gigatoken cannot encode any of the sampled documents", *compared)
    assert tokenizer.eos_id is not None
    expected = _framed(tokenizer.backend, attempt.sample, tokenizer.prefix_ids, tokenizer.eos_id)
    found, wanted = (
        np.split(ids, offsets[1:-1]) for ids, offsets in ((attempt.ids, attempt.offsets), expected)
    )
    differing = sum(not np.array_equal(*both) for both in zip(found, wanted, strict=True))
    if differing:
        reason = f"gigatoken gave other ids for {differing} of {attempt.count} sampled documents"
        return Choice("tokenizers", reason, *compared)
    reason = f"gigatoken gave the exact ids of {attempt.count} sampled documents"
    return Choice("gigatoken", reason, *compared)
