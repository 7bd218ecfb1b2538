"""A tokenizer as it works in the middle of a text: nothing is put before a piece, and special tokens are text.

`learn-pieces` asks it what may become a piece, `init-tokenizer` what it may be given, and the checks what a piece is
encoded as. So the three agree.
"""

import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import regex

from llmforge.tokenizer import bytelevel
from llmforge.tokenizer.formats.sentencepiece_model import NORMAL, SPACE
from llmforge.tokenizer.loading import NO_MODEL, Tokenizer, backend_of, bare_backend, folding_normalizer


class Inside:
    """What `tokenizer` does with a piece, spelled as its vocabulary spells it, wherever it stands in a text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.byte_level = tokenizer.family == "byte-level-bpe"
        self.folding = folding_normalizer(tokenizer)
        self.added = added_pattern(tokenizer)
        self.definition = _inside(tokenizer)
        self._standing: dict[str, bool] = {}

    @property
    def normalizer(self) -> Any:
        """What a byte-level text is folded by; None if nothing does. Those of sentencepiece have `fold`."""
        return self._without_model.normalizer

    @property
    def pre_tokenizer(self) -> Any:
        """What cuts a text into words, without what it would put before a text; None if nothing does."""
        return self._without_model.pre_tokenizer

    @cached_property
    def _without_model(self) -> Any:
        definition = {**self.definition, "model": NO_MODEL, "added_tokens": []}
        return backend_of(definition, self.tokenizer.directory)

    @cached_property
    def prefix(self) -> str:
        """What a sentencepiece tokenizer puts before a text: `▁` or nothing."""
        first = self.tokenizer.encode(["a"])[0][0]
        return SPACE if not self.byte_level and self.tokenizer.pieces()[first].startswith(SPACE) else ""

    @cached_property
    def reserved(self) -> frozenset[str]:
        """What is spelled like a token that no merge may make: control, user-defined, unused and added ones."""
        added = {token["content"] for token in self.tokenizer.definition.json["added_tokens"]}
        model = self.tokenizer.definition.model
        return frozenset(added | {p.piece for p in model.pieces if p.type != NORMAL} if model else added)

    def fold(self, text: str) -> str:
        """`text` with the characters that the source's normalizer makes of its own."""
        return str(self.folding.normalize_str(text)) if self.folding else text

    def stands(self, piece: str) -> bool:
        """Whether `piece` is left together before any merge: by normalizer, added tokens and pre-tokenizer.

        Part of a character is: it stands wherever the whole does.
        """
        if piece not in self._standing:
            self._standing[piece] = self._stands(piece)
        return self._standing[piece]

    def _stands(self, piece: str) -> bool:
        if piece in self.reserved:
            return False
        if self.byte_level:
            raw = bytelevel.to_bytes(piece)
            if raw is None:
                return False
            try:
                decoded = raw.decode("utf-8")
            except UnicodeDecodeError:
                return True
            normalizer = self.normalizer
            text = normalizer.normalize_str(decoded) if normalizer else decoded
            if text not in (decoded, piece):  # a byte-level normalizer spells it as the vocabulary does
                return False
        else:
            decoded = text = piece
            if has_control(piece) or self.fold(piece.replace(SPACE, " ")).replace(" ", SPACE) != piece:
                return False
        if self.added and self.added.search(decoded):
            return False
        return len(words_of(self.pre_tokenizer, text)) == 1

    def encode(self, pieces: Sequence[str]) -> list[list[int]]:
        """The ids of each piece. Part of a character is no text: of it only the merges can tell."""
        texts = [self._text(piece) for piece in pieces]
        backend = backend_of(self.definition, self.tokenizer.directory, self.tokenizer.backend.model)
        whole = backend.encode_batch_fast([t for t in texts if t is not None], add_special_tokens=False)
        parts = [piece for piece, text in zip(pieces, texts, strict=True) if text is None]
        bare = (
            bare_backend(self.tokenizer).encode_batch_fast(parts, add_special_tokens=False) if parts else []
        )
        found, rest = iter(whole), iter(bare)
        return [list(next(rest if text is None else found).ids) for text in texts]

    def _text(self, piece: str) -> str | None:
        if not self.byte_level:
            return piece
        try:
            return (bytelevel.to_bytes(piece) or b"\xff").decode("utf-8")
        except UnicodeDecodeError:
            return None


def words_of(pre_tokenizer: Any, text: str) -> list[str]:
    """The words that `pre_tokenizer` cuts `text` into; None cuts nothing."""
    if pre_tokenizer is None:
        return [text] if text else []
    return [word for word, _ in pre_tokenizer.pre_tokenize_str(text) if word]


def has_control(text: str) -> bool:
    """Whether there is a line break, another control character or half a surrogate in `text`."""
    return any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)


def added_pattern(tokenizer: Tokenizer) -> Any:
    """What finds the added tokens that cut a text (the special ones are text here); None if there are none.

    Of a sentencepiece tokenizer they are sought where `▁` stands for spaces already.
    """
    added = tokenizer.definition.json["added_tokens"]
    contents = {token["content"] for token in added if not token["special"] and token["content"]}
    if tokenizer.family != "byte-level-bpe":
        contents = {content.replace(" ", SPACE) for content in contents}
    longest_first = sorted(contents, key=lambda content: (-len(content), content))
    return regex.compile("|".join(map(regex.escape, longest_first))) if contents else None


def _inside(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer's `tokenizer.json` with nothing that puts a space before; pieces of sentencepiece go in as they are
    spelled.
    """
    definition = tokenizer.definition.json
    byte_level = tokenizer.family == "byte-level-bpe"
    added = definition["added_tokens"]
    if not byte_level:
        added = [{**token, "content": token["content"].replace(" ", SPACE)} for token in added]
    return {
        **definition,
        "normalizer": _unprefixed(definition.get("normalizer")) if byte_level else None,
        "pre_tokenizer": _unprefixed(definition.get("pre_tokenizer")),
        "post_processor": None,
        "decoder": None,
        "added_tokens": added,
    }


def _unprefixed(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer, and all inside it, without what it puts before a text."""
    if step is None or step["type"] == "Prepend":
        return None
    for inner in ("normalizers", "pretokenizers"):
        if inner in step:
            return {**step, inner: [s for s in map(_unprefixed, step[inner]) if s is not None]}
    if step["type"] == "ByteLevel":
        return {**step, "add_prefix_space": False}
    if step["type"] == "Metaspace":
        return {
            "type": "Metaspace",
            "replacement": SPACE,
            "prepend_scheme": "never",
            "split": step.get("split", True),
        }
    return step
