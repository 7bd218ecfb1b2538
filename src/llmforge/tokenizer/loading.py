"""A tokenizer ready to use: ids for text in which special tokens are never recognized."""

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from llmforge.errors import UserError
from llmforge.steps import fingerprint_json
from llmforge.tokenizer import bytelevel
from llmforge.tokenizer.definition import Definition, Family, read_definition
from llmforge.tokenizer.formats.sentencepiece_model import SPACE

BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
NO_MODEL: dict[str, Any] = {"type": "BPE", "vocab": {}, "merges": []}


@dataclass(frozen=True)
class Tokenizer:
    """A BPE or unigram tokenizer.

    `size` is the highest id + 1, added tokens included. `prefix_ids` are what this tokenizer itself puts before a text
    (bos, two tokens for GLM-4, or none); `eos_id` and `pad_id` are the ones its configuration names.
    `fingerprint` is that of the vocabulary (pieces by id, merges or scores): equal for every copy, however
    its files are laid out.
    """

    directory: Path
    family: Family
    size: int
    prefix_ids: tuple[int, ...]
    eos_id: int | None
    pad_id: int | None
    special_ids: frozenset[int]
    fingerprint: str
    definition: Definition

    @property
    def bos_id(self) -> int | None:
        """The first of `prefix_ids`; None where there is none."""
        return self.prefix_ids[0] if self.prefix_ids else None

    @cached_property
    def backend(self) -> tokenizers.Tokenizer:
        """The `tokenizers` object, which reads special tokens in text as text; built when first asked for, and
        `UserError` where the pieces and merges do not make a tokenizer.
        """
        return backend_of(self.definition.json, self.directory)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Flat int32 ids of `texts`, and int64 offsets (len(texts) + 1); nothing before or after a text."""
        with reporting(self.directory):
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]
        offsets = np.zeros(len(ids) + 1, dtype=np.int64)
        np.cumsum([len(one) for one in ids], out=offsets[1:])
        return np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32), offsets

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=False))

    def pieces(self) -> list[str]:
        """Pieces by id, as they stand in `tokenizer.json`; "" where an id is unused. Not to be changed."""
        return self._pieces

    @cached_property
    def _pieces(self) -> list[str]:
        return pieces_of(self.definition.json)

    def token_bytes(self, first: int = 0) -> list[bytes]:
        """By id, from `first` on, the UTF-8 bytes that a token stands for in text; b"" for special tokens and unused ids."""
        result = [self._bytes_of(piece) for piece in self.pieces()[first:]]
        for token in self.definition.json["added_tokens"]:
            if token["id"] >= first:
                result[token["id"] - first] = b"" if token["special"] else token["content"].encode()
        return result

    def _bytes_of(self, piece: str) -> bytes:
        if self.family == "byte-level-bpe":
            spelled = bytelevel.to_bytes(piece)
            return piece.encode() if spelled is None else spelled
        if (byte := BYTE_PIECE.fullmatch(piece)) and self.definition.json["model"].get("byte_fallback"):
            return bytes([int(byte[1], 16)])
        return piece.replace(SPACE, " ").encode()


def load(path: Path, scheme: str | None = None) -> Tokenizer:
    """The tokenizer in the directory `path` (of a tokenizer or of a model).

    Read are `tokenizer.json`, else `tokenizer.model`, else `vocab.json` with `merges.txt`, else tiktoken ranks; `scheme`
    says what ranks they are where it cannot be told. Raises `UserError` where there is none, where it is damaged, and
    for a kind that llmforge cannot extend, such as WordPiece.
    """
    tokenizer = load_unbuilt(path, scheme)
    _ = tokenizer.backend  # refuses pieces and merges that do not make a tokenizer
    return tokenizer


def load_unbuilt(path: Path, scheme: str | None = None) -> Tokenizer:
    """`load` for who has other things to begin first: the `backend` is built when it is asked for, and damage
    that only shows then is refused then.
    """
    # A vocabulary is a hundred thousand new objects and no cycle; going through them for cycles while they
    # are made takes a quarter of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return from_definition(read_definition(path, scheme))
    finally:
        if collecting:
            gc.enable()


def from_definition(definition: Definition) -> Tokenizer:
    """The tokenizer that `definition` describes."""
    pieces = pieces_of(definition.json)
    ids = {token["content"]: token["id"] for token in definition.json["added_tokens"]}
    return Tokenizer(
        directory=definition.directory,
        family=definition.family,
        size=len(pieces),
        prefix_ids=_prefix_ids(definition, len(pieces)),
        eos_id=ids.get(definition.config.get("eos_token")),
        pad_id=ids.get(definition.config.get("pad_token")),
        special_ids=frozenset(token["id"] for token in definition.json["added_tokens"] if token["special"]),
        fingerprint=_fingerprint(definition, pieces),
        definition=definition,
    )


def backend_of(definition: dict[str, Any], name: object, model: Any = None) -> tokenizers.Tokenizer:
    """The `tokenizers` object of a `tokenizer.json`: nothing cut or padded, special tokens read as text.

    `model` is that of another object, which it then shares: a hundred thousand pieces take most of a second to build.
    """
    added = definition["added_tokens"] if model else []
    if model:
        definition = {**definition, "model": NO_MODEL, "added_tokens": []}
    with reporting(name):
        text = definition_text(definition)
    backend = backend_of_text(text, name)
    if model:
        backend.model = model
        backend.add_tokens(
            [tokenizers.AddedToken(**{k: v for k, v in t.items() if k != "id"}) for t in added]
        )
    return backend


def definition_text(definition: dict[str, Any]) -> str:
    """The text of a `tokenizer.json`. json takes seven times as long for 32,000 pieces and their merges: 60 ms."""
    import msgspec

    return msgspec.json.encode(definition).decode()


def backend_of_text(definition: str, name: object) -> tokenizers.Tokenizer:
    """`backend_of` the text of a `tokenizer.json`."""
    with reporting(name):
        backend = tokenizers.Tokenizer.from_str(definition)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


@contextmanager
def reporting(name: object) -> Iterator[None]:
    """Makes a `UserError` of what `tokenizers` raises in a `with`: Exception itself, or a panic of its Rust.

    A panic is no Exception, and its class cannot be imported. Regular expressions beyond their limits end in one.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise UserError(
                f"{name} has a tokenizer that cannot be read or used ({error}); download its files again."
            ) from error
        raise


def folding_normalizer(tokenizer: Tokenizer) -> Any:
    """What a sentencepiece tokenizer does to characters (NFKC and the like), but not to spaces."""
    spacing = ("Prepend", "Replace", "Strip", "ByteLevel")
    folding = [s for s in _steps(tokenizer.definition.json["normalizer"]) if s["type"] not in spacing]
    if not folding:
        return None
    normalizer = {"type": "Sequence", "normalizers": folding}
    bare = {**bare_json(tokenizer), "normalizer": normalizer, "model": NO_MODEL}
    return backend_of(bare, tokenizer.directory).normalizer


def _steps(normalizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A normalizer as the steps that follow one another."""
    if normalizer is None:
        return []
    return (
        [step for part in normalizer["normalizers"] for step in _steps(part)]
        if normalizer["type"] == "Sequence"
        else [normalizer]
    )


def bare_backend(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer's model alone: it encodes words that are spelled as pieces."""
    return tokenizers.Tokenizer(tokenizer.backend.model)


def bare_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer's `tokenizer.json` reduced to its model: words spelled as pieces go in, ids come out."""
    empty: dict[str, Any] = {
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "added_tokens": [],
    }
    return {**tokenizer.definition.json, **empty, "model": dict(tokenizer.definition.json["model"])}


def pieces_of(definition: dict[str, Any]) -> list[str]:
    """Pieces by id of a `tokenizer.json`, added tokens included; "" where an id is unused."""
    model = definition["model"]
    by_id: dict[int, str] = {}
    if model["type"] == "Unigram":
        by_id.update(enumerate(piece for piece, _ in model["vocab"]))
    else:
        by_id.update((i, piece) for piece, i in model["vocab"].items())
    by_id.update((token["id"], token["content"]) for token in definition["added_tokens"])
    pieces = [""] * (max(by_id, default=-1) + 1)
    for i, piece in by_id.items():
        pieces[i] = piece
    return pieces


def _prefix_ids(definition: Definition, size: int) -> tuple[int, ...]:
    """The ids put before every text: what stands before its ids when special tokens are asked for.

    A model of two pieces answers, with ids that are no other token's, so that a tokenizer whose ids nobody wants
    is not built.
    """
    model = {"type": "BPE", "vocab": {"a": size, "?": size + 1}, "merges": [], "unk_token": "?"}
    backend = backend_of({**definition.json, "model": model, "added_tokens": []}, definition.directory)
    bare, framed = (backend.encode("a", add_special_tokens=wanted).ids for wanted in (False, True))
    return tuple(framed[: next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)])


def _fingerprint(definition: Definition, pieces: list[str]) -> str:
    model = definition.json["model"]
    order = [score for _, score in model["vocab"]] if model["type"] == "Unigram" else model["merges"]
    return fingerprint_json([definition.family, pieces, order])
