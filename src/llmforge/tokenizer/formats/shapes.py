"""What `tokenizer.json` may hold, checked field by field, so that all behind it can rely on the shape.

`checked` gives back a definition in which every field is there: nulls and missing keys have the value that `tokenizers`
gives them, merges are pairs, added tokens have all their flags, nothing is random. What cannot be used is a
`UserError` that names the file and the field. (huggingface/tokenizers, the serialization of each type)
"""

import base64
import binascii
import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from llmforge import console
from llmforge.errors import UserError

T = TypeVar("T")
MOST_UNUSED_IDS = 1_000_000  # a vocabulary is a list by id, and a model has a row for each
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
FIELDS = ("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor")
COMPONENTS = {
    "normalizer": (
        *("BertNormalizer", "Strip", "StripAccents", "NFC", "NFD", "NFKC", "NFKD", "Sequence", "Lowercase"),
        *("Nmt", "Precompiled", "Replace", "Prepend", "ByteLevel"),
    ),
    "pre_tokenizer": (
        *("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Metaspace", "Whitespace", "Sequence"),
        *("WhitespaceSplit", "Punctuation", "Split", "Digits", "UnicodeScripts", "FixedLength"),
    ),
    "post_processor": (
        *("RobertaProcessing", "BertProcessing", "ByteLevel", "TemplateProcessing", "Sequence"),
    ),
    "decoder": (
        *("BPEDecoder", "ByteLevel", "WordPiece", "Metaspace", "CTC", "Sequence", "Replace", "Fuse", "Strip"),
        *("ByteFallback",),
    ),
}
INSIDE = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
DEEPEST = 16  # of sequences in sequences; `tokenizers` reads no JSON deeper than 128


def checked(value: dict[str, Any], path: Path) -> dict[str, Any]:
    """The definition in `value`, the content of the `tokenizer.json` at `path`, whole."""
    definition = dict(value)
    if unknown := sorted(set(definition) - {*FIELDS, "decoder", "model"}):
        _refuse(path, unknown[0], "is a field that tokenizers does not know")
    if definition.get("version") not in (None, "1.0"):
        _refuse(path, "version", f'is {_short(definition["version"])}, not "1.0"')
    definition["version"] = "1.0"
    for name in ("truncation", "padding"):
        if not isinstance(definition.setdefault(name, None), dict | None):
            _refuse(path, name, "is neither an object nor null")
    for name in COMPONENTS:
        definition[name] = definition.get(name) or None
        _check_component(definition[name], name, name, path)
    definition["model"] = _model(definition.get("model"), path)
    definition["added_tokens"] = [
        added_token(token, f"added_tokens[{i}]", path)
        for i, token in enumerate(_list(definition.get("added_tokens") or [], "added_tokens", path))
    ]
    return definition


def added_token(value: Any, field: str, path: Path) -> dict[str, Any]:
    """The added token in `value` with its id and all flags; a flag that is missing is what `tokenizers` takes it for."""
    if not isinstance(value, dict):
        _refuse(path, field, f"is {_short(value)}, not an object")
    content = value.get("content")
    if not isinstance(content, str) or not content:
        _refuse(path, f"{field}.content", f"is {_short(content)}, not a text")
    check_text(content, f"{field}.content", path)
    special = value.get("special") or False
    token = {"id": check_id(value.get("id"), f"{field}.id", path), "content": content}
    for flag in FLAGS:
        default = not special if flag == "normalized" else False
        token[flag] = default if value.get(flag) is None else value[flag]
        if not isinstance(token[flag], bool):
            _refuse(path, f"{field}.{flag}", f"is {_short(token[flag])}, neither true nor false")
    return token


def check_id(value: Any, field: str, path: Path) -> int:
    """`value` as an id: a whole number that is not negative and fits 32 bits."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        _refuse(path, field, f"is {_short(value)}, not an id")
    return value


def check_text(text: str, field: str, path: Path) -> None:
    """Refuses half a surrogate, which JSON can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse(path, field, "has an unpaired surrogate, which is not valid text")


def check_sparse(count: int, highest: int, path: Path) -> None:
    """Refuses ids with so many unused ones between them that no model has a row for each."""
    if highest + 1 - count > MOST_UNUSED_IDS:
        raise UserError(
            f"{path} has {count:,} tokens and an id of {highest:,}: more than {MOST_UNUSED_IDS:,} ids between them are "
            "unused; correct the id."
        )


def vocabulary(vocab: Any, field: str, path: Path) -> dict[str, int]:
    """`vocab` as pieces with their ids, each id once."""
    if not isinstance(vocab, dict) or not vocab:
        _refuse(path, field, f"is {_short(vocab)}, not an object of pieces with their ids")
    if set(map(type, vocab.values())) != {int} or min(vocab.values()) < 0 or max(vocab.values()) >= 2**31:
        for piece, i in vocab.items():
            check_id(i, f"{field}[{piece!r}]", path)
    if len(set(vocab.values())) != len(vocab):
        seen: dict[int, str] = {}
        for piece, i in vocab.items():
            if i in seen:
                _refuse(path, field, f"gives the id {i} to both {seen[i]!r} and {piece!r}")
            seen[i] = piece
    check_sparse(len(vocab), max(vocab.values()), path)
    _check_texts(vocab, field, path)
    return vocab


def first_twice(values: Sequence[T]) -> T:
    """The first of `values` that was there before; there must be one."""
    seen: set[T] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    raise AssertionError("no value is there twice")


def _model(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict) or "vocab" not in value:
        raise UserError(
            f"{path} has no model with a vocabulary, so it is not a tokenizer.json; download the file again."
        )
    model = dict(value)
    if model.get("type") is None:  # files of 2020 left it out
        model["type"] = "BPE" if "merges" in model else "Unigram" if "unk_id" in model else "WordPiece"
    if model["type"] not in ("BPE", "Unigram"):
        kind = model["type"] if isinstance(model["type"], str) else _short(model["type"])
        raise UserError(f"{path} is a {kind} tokenizer; llmforge can extend BPE and unigram tokenizers only.")
    for flag in ("byte_fallback", "fuse_unk", "ignore_merges"):
        if not isinstance(model.get(flag), bool | None):
            _refuse(path, f"model.{flag}", f"is {_short(model[flag])}, neither true nor false")
    return _bpe(model, path) if model["type"] == "BPE" else _unigram(model, path)


def _bpe(model: dict[str, Any], path: Path) -> dict[str, Any]:
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UserError(
                f"{path}: model.{name} is {_short(model[name])}; llmforge cannot extend a tokenizer that marks "
                "the beginning or end of words like this."
            )
    unknown = model.get("unk_token")
    if not isinstance(unknown, str | None):
        _refuse(path, "model.unk_token", f"is {_short(unknown)}, not a text")
    dropout = model.get("dropout")
    if dropout:
        console.warn(
            f"{path}: model.dropout is {_short(dropout)}, which makes ids random; llmforge encodes without dropout, and writes "
            "null."
        )
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown or None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": bool(model.get("fuse_unk")),
        "byte_fallback": bool(model.get("byte_fallback")),
        "ignore_merges": bool(model.get("ignore_merges")),
        "vocab": vocabulary(model["vocab"], "model.vocab", path),
        "merges": _merges(model.get("merges"), path),
    }


def _merges(value: Any, path: Path) -> list[tuple[str, str]]:
    merges = _list(value, "model.merges", path)
    kinds = set(map(type, merges))
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else m for m in merges] if str in kinds else merges
    if not kinds <= {str, list} or set(map(len, pairs)) - {2} or set(map(type, chain(*pairs))) - {str}:
        for i, pair in enumerate(merges):
            parts = pair.split(" ") if isinstance(pair, str) else pair
            if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) for p in parts):
                _refuse(path, f"model.merges[{i}]", f"is {_short(pair)}, not two pieces")
    return list(map(tuple, pairs))


def _unigram(model: dict[str, Any], path: Path) -> dict[str, Any]:
    entries = _list(model["vocab"], "model.vocab", path)
    for i, entry in enumerate(entries):
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            _refuse(path, f"model.vocab[{i}]", f"is {_short(entry)}, not a piece with its score")
        if isinstance(entry[1], bool) or not isinstance(entry[1], int | float) or not math.isfinite(entry[1]):
            _refuse(path, f"model.vocab[{i}]", f"has the score {_short(entry[1])}, not a number")
    pieces = [piece for piece, _ in entries]
    _check_texts(pieces, "model.vocab", path)
    if len(set(pieces)) != len(pieces):
        _refuse(path, "model.vocab", f"has the piece {first_twice(pieces)!r} twice")
    unknown = model.get("unk_id")
    if unknown is not None and check_id(unknown, "model.unk_id", path) >= len(entries):
        _refuse(path, "model.unk_id", f"is {unknown}, which is not in the vocabulary")
    fallback = bool(model.get("byte_fallback"))
    return {"type": "Unigram", "unk_id": unknown, "vocab": entries, "byte_fallback": fallback}


def _check_component(component: Any, kind: str, field: str, path: Path, depth: int = 0) -> None:
    if component is None:
        return
    if not isinstance(component, dict) or not isinstance(component.get("type"), str):
        _refuse(path, field, f"is {_short(component)}, not an object with a type")
    name = component["type"]
    if name not in COMPONENTS[kind]:
        _refuse(path, f"{field}.type", f"is {_short(name)}, which tokenizers does not have")
    if name == "Precompiled":
        _check_charsmap(component.get("precompiled_charsmap"), f"{field}.precompiled_charsmap", path)
    if name == "Sequence":
        inside = f"{field}.{INSIDE[kind]}"
        if depth >= DEEPEST:
            _refuse(path, inside, f"has more than {DEEPEST} sequences in one another")
        for i, part in enumerate(_list(component.get(INSIDE[kind]), inside, path)):
            if part is None:
                _refuse(path, f"{inside}[{i}]", "is null")
            _check_component(part, kind, f"{inside}[{i}]", path, depth + 1)


def _check_charsmap(value: Any, field: str, path: Path) -> None:
    """sentencepiece's normalization table: the size of a trie, the trie in units of 4 bytes, and texts."""
    try:
        table = base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError):
        _refuse(path, field, "is not base64")
    check_charsmap(table, field, path)


def check_charsmap(table: bytes, field: str, path: Path) -> None:
    """Refuses a table that `tokenizers` and sentencepiece cannot read: the one panics, the other may read past it."""
    size = int.from_bytes(table[:4], "little")
    if len(table) < 8 or size % 4 or not 4 <= size <= len(table) - 4:
        _refuse(path, field, "is not a normalization table of sentencepiece")


def _check_texts(pieces: Any, field: str, path: Path) -> None:
    try:
        "".join(pieces).encode()
    except UnicodeEncodeError:
        for piece in pieces:
            check_text(piece, f"{field}[{piece!r}]", path)


def _list(value: Any, field: str, path: Path) -> list[Any]:
    if not isinstance(value, list):
        _refuse(path, field, f"is {_short(value)}, not a list")
    return value


def _short(value: Any) -> str:
    if value is None:
        return "null or missing"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refuse(path: Path, field: str, what: str) -> NoReturn:
    raise UserError(f"{path}: {field} {what}; correct the field, or download the file again.")
