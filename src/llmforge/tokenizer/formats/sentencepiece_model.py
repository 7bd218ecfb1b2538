"""The sentencepiece protobuf: read, checked, and written as a `tokenizer.json` that gives the same ids.

sentencepiece's BPE merges the adjacent pair whose joint piece has the highest score, the leftmost first;
`tokenizers` merges the pair of the lowest rank. So merges are listed in the order of the scores of what they
make, and only pieces of type NORMAL make merges: a text that spells `<s>` or `<0x0A>` must not become a
control token or a byte. (sentencepiece, src/bpe_model.cc; transformers 4.51 converts alike, transformers 5
ranks by id.)
"""

import base64
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from llmforge.errors import UserError
from llmforge.sizes import refuse_large
from llmforge.tokenizer.formats.shapes import check_charsmap, first_twice

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
SPACE = "▁"
BYTE_NAME = re.compile("<0x[0-9A-F]{2}>")


def read_model(path: Path) -> Any:
    """The `ModelProto` in the file `path`; a `UserError` if it is not a whole BPE or unigram model."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(refuse_large(path).read_bytes())
    except DecodeError:
        raise UserError(
            f"{path} is not a sentencepiece model, or is truncated; download the file again."
        ) from None
    if not proto.pieces or not proto.HasField("trainer_spec") or not proto.HasField("normalizer_spec"):
        raise UserError(
            f"{path} lacks parts of a sentencepiece model, so it is truncated; download the file again."
        )
    if proto.trainer_spec.model_type not in (BPE, UNIGRAM):
        raise UserError(
            f"{path} is a sentencepiece model of type word or char; llmforge supports BPE and unigram."
        )
    if proto.trainer_spec.treat_whitespace_as_suffix or not proto.normalizer_spec.escape_whitespaces:
        raise UserError(
            f"{path} treats whitespace as a suffix or not at all, which tokenizer.json cannot represent; use another model."
        )
    _check_pieces(proto, path)
    return proto


def _check_pieces(proto: Any, path: Path) -> None:
    """Refuses what a damaged byte makes of a model: sentencepiece would stop the process or read past its end."""
    size, spec = len(proto.pieces), proto.trainer_spec
    names = [piece.piece for piece in proto.pieces]
    if len(set(names)) != size:
        _refuse(path, "pieces", f"has {first_twice(names)!r} twice")
    if "" in names:
        _refuse(path, f"pieces[{names.index('')}]", "is empty")
    if not all(math.isfinite(piece.score) for piece in proto.pieces):
        i = next(i for i, piece in enumerate(proto.pieces) if not math.isfinite(piece.score))
        _refuse(path, f"pieces[{i}]", f"has the score {proto.pieces[i].score}")
    for i, piece in enumerate(proto.pieces):
        if piece.type == BYTE and not BYTE_NAME.fullmatch(piece.piece):
            _refuse(path, f"pieces[{i}]", f"is {piece.piece!r}, which names no byte")
    if sum(piece.type == UNKNOWN for piece in proto.pieces) != 1:
        _refuse(path, "pieces", "has no unknown piece, or several")
    for name in ("bos_id", "eos_id", "unk_id", "pad_id"):
        if not -1 <= getattr(spec, name) < size:
            _refuse(path, f"trainer_spec.{name}", f"is {getattr(spec, name)}, which is not a piece")
    if spec.byte_fallback and sum(piece.type == BYTE for piece in proto.pieces) != 256:
        _refuse(path, "trainer_spec.byte_fallback", "is set, but not every byte is a piece")
    if proto.normalizer_spec.precompiled_charsmap:
        check_charsmap(
            proto.normalizer_spec.precompiled_charsmap, "normalizer_spec.precompiled_charsmap", path
        )


def _refuse(path: Path, field: str, what: str) -> NoReturn:
    raise UserError(f"{path}: {field} {what}; download the file again.")


def to_tokenizer_json(proto: Any) -> dict[str, Any]:
    """The `tokenizer.json` of `proto`, which puts nothing around a text."""
    prefix = proto.normalizer_spec.add_dummy_prefix
    users = any(piece.type == USER_DEFINED for piece in proto.pieces)
    decoder: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(proto),
        "normalizer": _normalizer(proto.normalizer_spec, prefix and not users),
        # `Prepend` would put a space after every user-defined piece as well; this one knows the start of the
        # text, but takes a text that begins with a space for one that has its prefix already.
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": SPACE,
            "prepend_scheme": "first",
            "split": False,
        }
        if prefix and users
        else None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoder},
        "model": model_json(proto),
    }


def named_tokens(proto: Any) -> dict[str, str]:
    """What `tokenizer_config.json` would name: the special tokens that the model has."""
    ids = {
        f"{name}_token": getattr(proto.trainer_spec, f"{name}_id") for name in ("bos", "eos", "unk", "pad")
    }
    return {name: proto.pieces[i].piece for name, i in ids.items() if i >= 0}


def model_json(proto: Any) -> dict[str, Any]:
    """The `model` of `tokenizer.json`: vocabulary with merges or with scores."""
    bytes_too = bool(proto.trainer_spec.byte_fallback)
    unknown = next((i for i, piece in enumerate(proto.pieces) if piece.type == UNKNOWN), None)
    if proto.trainer_spec.model_type == UNIGRAM:
        vocabulary = [[piece.piece, piece.score] for piece in proto.pieces]
        return {"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": bytes_too}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None if unknown is None else proto.pieces[unknown].piece,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": bytes_too,
        "ignore_merges": False,
        "vocab": {piece.piece: i for i, piece in enumerate(proto.pieces)},
        "merges": merges_by_score({p.piece: p.score for p in proto.pieces if p.type == NORMAL}),
    }


def merges_by_score(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, best score first; of one score, longest left part first."""
    found: list[tuple[float, list[tuple[str, str]]]] = []
    for piece, score in scores.items():
        splits = [
            (piece[:i], piece[i:])
            for i in range(len(piece) - 1, 0, -1)
            if piece[i:] in scores and piece[:i] in scores
        ]
        if splits:
            found.append((-score, _leftmost_first(splits) if len(splits) > 1 else splits))
    found.sort(key=lambda entry: (entry[0], -len(entry[1][0][0]), -len(entry[1][0][1])))
    return [pair for _, splits in found for pair in splits]


def _leftmost_first(splits: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs that make one piece, ordered so that the lowest rank is the leftmost pair where two overlap.

    "ab" + "aba" and "aba" + "ba" both make "ababa" and contend in ab|aba|ba. sentencepiece, to which they are equal,
    takes the left one, so it needs the lower rank.
    """
    ordered: list[tuple[str, str]] = []
    for pair in splits:
        behind = [i for i, other in enumerate(ordered) if other[0] == pair[1] and other[1] != pair[0]]
        ordered.insert(min(behind, default=len(ordered)), pair)
    return ordered


def added_tokens(proto: Any) -> list[dict[str, Any]]:
    """The entries of `added_tokens`: control and unknown pieces are special, user-defined ones are not."""
    types = {UNKNOWN: True, CONTROL: True, USER_DEFINED: False}
    return [added_token(i, p.piece, types[p.type]) for i, p in enumerate(proto.pieces) if p.type in types]


def added_token(id: int, content: str, special: bool) -> dict[str, Any]:
    """One entry of `added_tokens` that matches `content` exactly, in the text as it is."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": id, "content": content, **flags, "special": special}


def fill(model: Any, size: int, added_tokens: list[dict[str, Any]]) -> None:
    """Gives added tokens behind the vocabulary their places in `model`, and unused ids below `size` a placeholder."""
    added = {token["id"]: token for token in added_tokens}
    for i in range(len(model.pieces), size):
        token = added.get(i, {"content": f"<unused_{i}>", "special": True})
        kind = CONTROL if token["special"] else USER_DEFINED
        model.pieces.add(piece=token["content"], score=0.0, type=kind)


def _normalizer(spec: Any, prepend: bool) -> dict[str, Any] | None:
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if prepend:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return {"type": "Sequence", "normalizers": steps}
