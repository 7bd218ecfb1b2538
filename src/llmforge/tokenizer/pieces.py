"""Reading the file of new pieces and cleaning what it holds, by rules that are stated here and counted.

a space is `▁` and `▁` a space       as the source's family writes it; not in `bytes`
compatibility forms                   folded where the source's own normalizer folds them, else kept
twice the same piece                  the first stays
a piece that the source has           left out
part of a character                   left out if another tokenizer's, and the source is not byte-level
a line break, a control character     refused, with file and line, where the source's pre-tokenizer cuts there, and
                                      always if it is a sentencepiece tokenizer; of another tokenizer: left out
empty, half a surrogate               refused, with file and line: such a line is no piece but a mistake
"""

import codecs
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.errors import UserError, missing
from llmforge.tokenizer import bytelevel
from llmforge.tokenizer.formats.sentencepiece_model import NORMAL, SPACE, read_model
from llmforge.tokenizer.inside import Inside, has_control
from llmforge.tokenizer.loading import BYTE_PIECE, load

_NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
_WORD_WITH_FREQUENCY = re.compile(r"\S+ \d+( \S+)?")
_NO_TEXT = ("<unk>", "<s>", "</s>", "<pad>")  # in a `.vocab`, which has no types


@dataclass(frozen=True)
class Cleaned:
    """New pieces, spelled as the source's vocabulary spells them, and how many were left out and why."""

    pieces: list[str]
    counts: dict[str, int]


def read_pieces(path: Path, inside: Inside) -> Cleaned:
    """The cleaned pieces of `path`: jsonl, plain text, a sentencepiece `.model` or `.vocab`, or a tokenizer directory.

    `inside` is the source, which says how a piece is spelled and what it may be.
    """
    known = set(inside.tokenizer.pieces())
    counts = dict.fromkeys(
        ("read", "duplicates", "already_present", "folded", "parts_of_characters", "control_characters"), 0
    )
    collection = (
        path.is_dir() or path.suffix == ".model"
    )  # made for another end: what does not fit is left out
    pieces: dict[str, None] = {}
    for piece, place in _entries(path):
        counts["read"] += 1
        if isinstance(piece, bytes) and not inside.byte_level:
            if not path.is_dir():
                raise UserError(
                    f"{place}: `bytes` are for byte-level tokenizers; the source tokenizer is {inside.tokenizer.family}. Use `piece`."
                )
            try:
                piece = piece.decode("utf-8")
            except UnicodeDecodeError:
                counts["parts_of_characters"] += 1
                continue
        if isinstance(piece, bytes):
            text = piece.decode("utf-8", "ignore")
            spelled = bytelevel.to_piece(piece)
        else:
            _check(piece, place)
            text = inside.fold(piece)
            counts["folded"] += text != piece
            if not text:
                raise UserError(
                    f"{place}: the source's normalizer removes {piece!r} completely; remove the line."
                )
            spaced = text.replace(SPACE, " ")
            spelled = bytelevel.to_piece(spaced.encode()) if inside.byte_level else spaced.replace(" ", SPACE)
        if spelled in known:
            counts["already_present"] += 1
        elif spelled in pieces:
            counts["duplicates"] += 1
        elif has_control(text) and not inside.stands(spelled):
            if not collection:
                raise UserError(_control_sentence(text, place, inside.byte_level))
            counts["control_characters"] += 1
        else:
            pieces[spelled] = None
    if not counts["read"]:
        raise UserError(f"{path} contains no pieces; give a file with at least one.")
    if not pieces:
        left_out = counts["parts_of_characters"] + counts["control_characters"]
        others = f" and cannot have {left_out:,} others" if left_out else ""
        raise UserError(
            f"{path} contains no new pieces: {counts['already_present']:,} of them are in the source tokenizer already{others}."
        )
    return Cleaned(list(pieces), counts)


def _entries(path: Path) -> Iterator[tuple[str | bytes, str]]:
    """(piece, where it stands) for everything in `path`."""
    if not path.exists():
        raise missing(path)
    if path.is_dir():
        yield from _tokenizer_entries(path)
    elif path.suffix == ".model":
        yield from _model_entries(read_model(path), path)
    elif path.name in ("tokenizer.json", "vocab.json", "tekken.json") or path.suffix == ".tiktoken":
        raise UserError(
            f"{path} is a tokenizer's file; to add the tokens of that tokenizer, give its directory."
        )
    else:
        read_line = _plain_entry if path.suffix in (".txt", ".vocab") else _line_entry
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                place = f"{path}, line {number}"
                if (
                    entry := read_line(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, place)
                ) is not None:
                    yield entry, place


def _plain_entry(line: bytes, place: str) -> str | None:
    """The piece that is a whole line; what follows a tab is its score (sentencepiece's `.vocab`). None if it is blank."""
    try:
        piece, tab, score = line.decode("utf-8").rstrip("\r\n").partition("\t")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 ({error.reason}); convert the file.") from error
    if not piece.strip() and not tab:
        return None
    if tab and not _NUMBER.fullmatch(score):
        raise UserError(f"{place}: {score!r} after the tab is not a score; write one piece per line.")
    if _WORD_WITH_FREQUENCY.fullmatch(piece):
        raise UserError(
            f"{place}: {piece!r} looks like a word with its frequency; give such a list to learn-pieces --word-list, or "
            'write {"piece": "..."}.'
        )
    if piece.endswith(" "):
        raise UserError(f'{place}: {piece!r} ends in a space; remove the space, or write {{"piece": "..."}}.')
    return None if tab and (piece in _NO_TEXT or BYTE_PIECE.fullmatch(piece)) else piece


def _line_entry(line: bytes, place: str) -> str | bytes:
    if not line.strip():
        raise UserError(f"{place}: blank; remove the line.")
    try:
        value: Any = json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise UserError(
            f'{place}: not JSON ({error}); write {{"piece": "..."}}, or one piece per line in a .txt file.'
        ) from error
    if not isinstance(value, dict) or ("piece" in value) == ("bytes" in value):
        raise UserError(f'{place}: no `piece`; write {{"piece": "..."}}.')
    if "bytes" in value:
        try:
            raw = bytes.fromhex(value["bytes"])
        except (TypeError, ValueError):
            raise UserError(
                f"{place}: `bytes` is {value['bytes']!r}, not hexadecimal digits; correct the line."
            ) from None
        if not raw:
            raise UserError(f"{place}: the piece is empty; remove the line.")
        return raw
    if not isinstance(value["piece"], str):
        raise UserError(f"{place}: `piece` is {json.dumps(value['piece'])}, not a string; put it in quotes.")
    return value["piece"]


def _check(piece: str, place: str) -> None:
    if not piece:
        raise UserError(f"{place}: the piece is empty; remove the line.")
    if any(unicodedata.category(character) == "Cs" for character in piece):
        raise UserError(
            f"{place}: {piece!r} has an unpaired surrogate, which is not valid text; remove the line."
        )


def _control_sentence(text: str, place: str, byte_level: bool) -> str:
    breaks = any(character in "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029" for character in text)
    what = "a line break" if breaks else "a control character"
    why = "which the source tokenizer never joins with the rest" if byte_level else "which no piece may have"
    return f"{place}: {text!r} has {what}, {why}; remove the line."


def _model_entries(model: Any, path: Path) -> Iterator[tuple[str, str]]:
    """What Chinese-LLaMA merged: the normal pieces of another model, by id."""
    for i, piece in enumerate(model.pieces):
        if piece.type == NORMAL:
            yield piece.piece, f"{path}, piece {i}"


def _tokenizer_entries(directory: Path) -> Iterator[tuple[str | bytes, str]]:
    """The pieces of a tokenizer directory, by id, without special tokens and bytes."""
    tokenizer = load(directory)
    if tokenizer.definition.model is not None:
        yield from _model_entries(tokenizer.definition.model, directory / "tokenizer.model")
        return
    added = {token["id"] for token in tokenizer.definition.json["added_tokens"]}
    byte_level = tokenizer.family == "byte-level-bpe"
    for i, (piece, raw) in enumerate(zip(tokenizer.pieces(), tokenizer.token_bytes(), strict=True)):
        if piece and i not in added and not BYTE_PIECE.fullmatch(piece):
            yield raw if byte_level else piece, f"{directory}, piece {i}"
