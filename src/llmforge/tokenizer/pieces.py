"""Reading the file of new pieces and cleaning what it holds, by rules that are stated here and counted.

a space is `▁` and `▁` a space       as the source's family writes it
compatibility forms                   folded where the source's own normalizer folds them, else kept
twice the same piece                  the first stays
a piece that the source has           left out
part of a character                   left out if another tokenizer's, and the source is not byte-level
empty, a line break or any other      refused, with file and line: such a line is no piece but a mistake
control character, half a surrogate
"""

import json
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.errors import UserError
from llmforge.tokenizer import bytelevel
from llmforge.tokenizer.sentencepiece_model import NORMAL, SPACE, read_model


@dataclass(frozen=True)
class Cleaned:
    """New pieces, spelled as the source's vocabulary spells them, and how many were left out and why."""

    pieces: list[str]
    counts: dict[str, int]


def read_pieces(path: Path, family: str, known: set[str], fold: Callable[[str], str] | None) -> Cleaned:
    """The cleaned pieces of `path`: a jsonl file, a sentencepiece `.model`, or a tokenizer directory.

    `family` and `known` (pieces by the spelling of the vocabulary) are the source's; `fold` is its own
    folding of characters, if it has one.
    """
    byte_level = family == "byte-level-bpe"
    counts = {"read": 0, "duplicates": 0, "already_present": 0, "folded": 0, "parts_of_characters": 0}
    pieces: dict[str, None] = {}
    for piece, place in _entries(path):
        counts["read"] += 1
        if isinstance(piece, bytes):
            if not byte_level and path.is_dir():
                counts["parts_of_characters"] += 1
                continue
            if not byte_level:
                raise UserError(
                    f"{place}: `bytes` are pieces of byte-level tokenizers; this source is {family}."
                )
            spelled = bytelevel.to_piece(piece)
        else:
            _check(piece, place)
            folded = fold(piece) if fold else piece
            counts["folded"] += folded != piece
            if not folded:
                raise UserError(
                    f"{place}: the source's normalizer leaves nothing of {piece!r}; remove the line."
                )
            spaced = folded.replace(SPACE, " ")
            spelled = bytelevel.to_piece(spaced.encode()) if byte_level else spaced.replace(" ", SPACE)
        if spelled in known:
            counts["already_present"] += 1
        elif spelled in pieces:
            counts["duplicates"] += 1
        else:
            pieces[spelled] = None
    if not counts["read"]:
        raise UserError(f"{path} holds no pieces; give a file with at least one.")
    if not pieces:
        raise UserError(
            f"{path} holds no new pieces: the source has all {counts['already_present']:,} of them already."
        )
    return Cleaned(list(pieces), counts)


def _entries(path: Path) -> Iterator[tuple[str | bytes, str]]:
    """(piece, where it stands) for everything in `path`."""
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path.")
    if path.is_dir():
        yield from _tokenizer_entries(path)
    elif path.suffix == ".model":
        yield from _model_entries(read_model(path), path)
    else:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                place = f"{path}, line {number}"
                yield _line_entry(line, place), place


def _line_entry(line: bytes, place: str) -> str | bytes:
    if not line.strip():
        raise UserError(f"{place}: blank; remove the line.")
    try:
        value: Any = json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise UserError(f'{place}: not JSON ({error}); write {{"piece": "..."}}.') from error
    if not isinstance(value, dict) or ("piece" in value) == ("bytes" in value):
        raise UserError(f'{place}: no `piece`; write {{"piece": "..."}}.')
    if "bytes" in value:
        try:
            raw = bytes.fromhex(value["bytes"])
        except (TypeError, ValueError):
            raise UserError(
                f"{place}: `bytes` is {value['bytes']!r}, not hexadecimal digits; mend the line."
            ) from None
        if not raw:
            raise UserError(f"{place}: the piece is empty; remove the line.")
        return raw
    if not isinstance(value["piece"], str):
        raise UserError(f"{place}: `piece` is {json.dumps(value['piece'])}, not a text; put it in quotes.")
    return value["piece"]


def _check(piece: str, place: str) -> None:
    if not piece:
        raise UserError(f"{place}: the piece is empty; remove the line.")
    for character in piece:
        kind = unicodedata.category(character)
        if kind == "Cs":
            raise UserError(
                f"{place}: {piece!r} has an unpaired surrogate, which is no text; remove the line."
            )
        if kind in ("Cc", "Zl", "Zp"):
            what = (
                "a line break"
                if character in "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
                else "a control character"
            )
            raise UserError(f"{place}: {piece!r} has {what}, which no piece may have; remove the line.")


def _model_entries(model: Any, path: Path) -> Iterator[tuple[str, str]]:
    """What Chinese-LLaMA merged: the normal pieces of another model, best first."""
    normal = [(i, p) for i, p in enumerate(model.pieces) if p.type == NORMAL]
    for i, piece in sorted(normal, key=lambda entry: -entry[1].score):
        if not _has_control(piece.piece):
            yield piece.piece, f"{path}, piece {i}"


def _tokenizer_entries(directory: Path) -> Iterator[tuple[str | bytes, str]]:
    """The pieces of a tokenizer directory, by id, without special tokens, bytes and control characters."""
    from llmforge.tokenizer.load import BYTE_PIECE, load

    tokenizer = load(directory)
    if tokenizer.definition.model is not None:
        yield from _model_entries(tokenizer.definition.model, directory / "tokenizer.model")
        return
    added = {token["id"] for token in tokenizer.definition.json["added_tokens"]}
    for i, (piece, raw) in enumerate(zip(tokenizer.pieces(), tokenizer.token_bytes(), strict=True)):
        if not piece or i in added or BYTE_PIECE.fullmatch(piece):
            continue
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            yield raw, f"{directory}, piece {i}"
            continue
        if not _has_control(text):
            yield text, f"{directory}, piece {i}"


def _has_control(piece: str) -> bool:
    return any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in piece)
