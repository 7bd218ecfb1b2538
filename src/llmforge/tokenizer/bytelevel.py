"""GPT-2's alphabet: every byte as one printable character, so that byte strings can be pieces."""

from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def byte_to_character() -> dict[int, str]:
    """The character that stands for each byte: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{byte: chr(byte) for byte in printable},
        **{byte: chr(0x100 + i) for i, byte in enumerate(others)},
    }


@lru_cache(maxsize=1)
def character_to_byte() -> dict[str, int]:
    """The inverse of `byte_to_character`."""
    return {character: byte for byte, character in byte_to_character().items()}


def to_piece(text: bytes) -> str:
    """The piece that stands for the bytes `text`."""
    table = byte_to_character()
    return "".join(table[byte] for byte in text)


def to_bytes(piece: str) -> bytes | None:
    """The bytes that `piece` stands for; None if it has a character outside the alphabet."""
    try:
        return piece.translate(_latin_1()).encode("latin-1")
    except UnicodeEncodeError:
        return None


@lru_cache(maxsize=1)
def _latin_1() -> dict[int, int]:
    """From each character of the alphabet to the one of Latin-1 with that byte; the rest of Latin-1 goes out of
    it.
    """
    others = {code: 0xFFFF for code in range(256) if chr(code) not in character_to_byte()}
    return others | {ord(character): byte for character, byte in character_to_byte().items()}


def bpe_model(vocab: dict[str, int], merges: Any, ignore_merges: bool) -> dict[str, Any]:
    """`model` of a `tokenizer.json`: byte-level BPE, in which every text has pieces."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": merges,
    }
