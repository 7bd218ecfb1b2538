"""Stage 1: a chunk of input becomes a shard, its documents' ids in one flat file and a record of each in
another.

    000012.ids        uint16 or int32 (`ids_type`), the documents one after another
    000012.records    one RECORD per document
    000012.spans      the tokens that are not trained, one SPAN for each stretch of them, in the order of the documents
    000012.hashes     XXH3-128 of each text, where duplicates or a holdout need it
    000012.minhash    the MinHash of each text, where near duplicates are looked for
    000012.rejected   the lines that are not documents, as in rejected.jsonl
    000012.json       a `Summary`; written last, so a shard without it is not finished

The documents of each block read stand in the order of category and key: what goes to one bin lies together,
and is read in few large portions. Nothing here depends on which process made it or when.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from llmforge.corpus import Block, Chunk, ReadOptions, SourceNames, read_blocks
from llmforge.dataset.conversations import ChatEncoder, ChatSettings
from llmforge.dataset.curriculum import ordered_keys
from llmforge.dataset.dedup import signatures
from llmforge.dataset.encoding import Attempt, Encoder
from llmforge.dataset.quality import Judge, QualitySettings
from llmforge.dataset.rules import Rule
from llmforge.dataset.sample import sample_texts
from llmforge.dataset.shuffle import Keys, derived_seed, keys

RECORD = np.dtype(
    [
        ("start", "<i8"),  # of its ids in the file, in tokens
        ("tokens", "<u4"),
        ("span", "<u4"),  # the number of its first span in the file
        ("spans", "<u4"),  # how many it has
        ("bytes", "<u4"),  # of trained text
        ("line", "<u4"),  # in the chunk, from 1
        ("category", "<u2"),  # an index into the shard's categories
        ("key", "<u8"),  # pseudo-random: the order of documents in a dataset
        ("verdict", "<u2"),  # 0, or 1 + an index into the shard's verdicts: why it is not wanted
    ]
)
SPAN = np.dtype([("begin", "<u4"), ("end", "<u4")])  # in tokens of the document
LAYOUT = 2  # of these files; shards of another one are made again
Records = npt.NDArray[np.void]


@dataclass(frozen=True)
class ShardSettings:
    """All that decides a shard's bytes besides its chunk."""

    encoder: str
    backend: str
    ids_type: str
    reading: ReadOptions
    seed: int
    hashes: bool = False
    minhash: bool = False
    quality: QualitySettings = field(default_factory=QualitySettings)
    chat: ChatSettings | None = None
    order: str = ""
    by: str = ""
    keep: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class Summary:
    """What a shard holds. `bytes` are of text; `read` is the chunk's share of the bytes on disk; `sources` are
    `SourceNames.values` of its first documents; `split` is that of `ChatEncoder`.
    """

    number: int
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    lines: int = 0
    read: int = 0
    rejected: int = 0
    first_rejected: str = ""
    categories: list[str] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    sources: dict[str, int] = field(default_factory=dict)
    split: dict[str, int] = field(default_factory=dict)


def ids_type(size: int) -> str:
    """How a shard keeps the ids of a tokenizer of `size`: half as many bytes to write and read where they do."""
    return "<u2" if size <= 1 << 16 else "<i4"


def shard_path(directory: Path, number: int, suffix: str) -> Path:
    return directory / f"{number:06d}.{suffix}"


def make_shard(settings: ShardSettings, chunk: Chunk, directory: Path) -> Summary:
    """Reads and encodes `chunk`; a shard that is finished already is left as it is."""
    if done := read_summary(directory, chunk.number):
        return done
    encoder, judge = open_encoder(settings.encoder, settings.backend), _judge(settings.quality)
    chat = ChatEncoder(settings.chat, encoder) if settings.chat else None
    categories: dict[str, int] = {}
    verdicts: dict[str, int] = {}
    start = documents = size = lines = rejected = stretches = 0
    first_rejected = ""
    names = SourceNames(settings.reading)
    paths = {
        suffix: shard_path(directory, chunk.number, suffix)
        for suffix in ("ids", "records", "spans", "hashes", "minhash", "rejected")
    }
    with (
        paths["ids"].open("wb") as ids,
        paths["records"].open("wb") as records,
        paths["spans"].open("wb") as spans,
        paths["hashes"].open("wb") as hashes,
        paths["minhash"].open("wb") as minhash,
        paths["rejected"].open("w", encoding="utf-8") as rejects,
    ):
        for block in read_blocks(chunk, settings.reading):
            if chat:
                block = chat.render(block)
            lines += block.lines
            for one in block.rejected:
                entry = {"line": one.line, "reason": one.reason, "documents": one.documents}
                rejects.write(json.dumps({**entry, "category": chunk.category}, ensure_ascii=False) + "\n")
                first_rejected = first_rejected or json.dumps(entry)
                rejected += one.documents
            if not len(block):
                continue
            names.see(block)
            block, key = _in_key_order(block, settings, chunk.number)
            encoded = chat.encode(block) if chat else encoder.encode(block)
            table = np.zeros(len(block), RECORD)
            table["start"] = start + encoded.offsets[:-1]
            table["tokens"] = np.diff(encoded.offsets)
            table["span"] = stretches + encoded.untrained.offsets[:-1]
            table["spans"] = encoded.untrained.counts
            table["bytes"] = encoded.trained_bytes
            table["line"] = block.line
            table["key"] = key
            table["category"] = _codes(block, categories)
            ids.write(encoded.ids.astype(settings.ids_type, copy=False).data)
            if settings.hashes:
                hashes.write(text_hashes(block))
            if judge:
                reasons = [judge.reason(text) for text in block.text.to_pylist()]
                table["verdict"] = [verdicts.setdefault(r, 1 + len(verdicts)) if r else 0 for r in reasons]
            for rule in settings.keep:
                code = verdicts.setdefault(rule.reason, 1 + len(verdicts))
                dropped = ~rule.holds(block.numbers[rule.field]) & (table["verdict"] == 0)
                table["verdict"][dropped] = code
            if settings.minhash:
                minhash.write(signatures(block.text.to_pylist()).tobytes())
            records.write(table.data)
            untrained = np.empty(len(encoded.untrained), SPAN)
            untrained["begin"], untrained["end"] = encoded.untrained.begins, encoded.untrained.ends
            spans.write(untrained.data)
            stretches += len(untrained)
            start += len(encoded.ids)
            documents += len(block)
            size += block.text_bytes
    summary = Summary(
        chunk.number,
        documents,
        start,
        size,
        lines,
        chunk.size,
        rejected,
        first_rejected,
        list(categories),
        list(verdicts),
        dict(names.values),
        dict(chat.split) if chat else {},
    )
    _write_json(shard_path(directory, chunk.number, "json"), {"layout": LAYOUT, **asdict(summary)})
    return summary


def read_summary(directory: Path, number: int) -> Summary | None:
    """The summary of a finished shard, else None."""
    path = shard_path(directory, number, "json")
    if not path.is_file():
        return None
    made = json.loads(path.read_text(encoding="utf-8"))
    return Summary(**made) if made.pop("layout", 1) == LAYOUT else None


def read_records(directory: Path, number: int) -> Records:
    """The records of a shard, (documents,) RECORD."""
    return np.fromfile(shard_path(directory, number, "records"), RECORD)


def read_hashes(directory: Path, number: int) -> npt.NDArray[np.uint64]:
    """(documents, 2) uint64: the XXH3-128 of each text."""
    return np.fromfile(shard_path(directory, number, "hashes"), "<u8").reshape(-1, 2)


def text_hashes(block: Block) -> bytes:
    """XXH3-128 of each text of the block, 16 bytes each."""
    view, offsets = block.text_data, block.text_offsets.tolist()
    digest = xxhash.xxh3_128_digest
    return b"".join([digest(view[a:b]) for a, b in pairwise(offsets)])


def _in_key_order(block: Block, settings: ShardSettings, chunk: int) -> tuple[Block, Keys]:
    """The documents of `block` by category and key, and those keys; a document's key follows from where it
    stands, or from its number.
    """
    key = keys(derived_seed("documents", settings.seed, chunk), block.line)
    if settings.order:
        key = ordered_keys(block.numbers[settings.by], key, settings.order)
    order = np.lexsort((key, np.asarray(block.category.indices)))
    return (block.take(order) if len(block) > 1 else block), key[order]


def _codes(block: Block, categories: dict[str, int]) -> npt.NDArray[np.int64]:
    names = block.category.dictionary.to_pylist()
    codes = np.array([categories.setdefault(name, len(categories)) for name in names], np.int64)
    coded: npt.NDArray[np.int64] = codes[np.asarray(block.category.indices)]
    return coded


@lru_cache(maxsize=1)
def open_encoder(directory: str, backend: str) -> Encoder:
    """The encoder of `directory`, once in a process."""
    return Encoder(Path(directory), backend)


def start_encoder(directory: str) -> None:
    """Opens the encoder of this process before there is work for it."""
    open_encoder(directory, "gigatoken")


def attempt_sample(directory: str, chunks: Sequence[Chunk], reading: ReadOptions) -> Attempt:
    """What gigatoken makes of documents from all over `chunks`."""
    return open_encoder(directory, "gigatoken").attempt(sample_texts(chunks, reading))


@lru_cache(maxsize=1)
def _judge(settings: QualitySettings) -> Judge | None:
    return Judge(settings) if settings else None


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)
