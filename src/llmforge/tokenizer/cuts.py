"""Where a text can be cut so that the ids of its parts are those of the whole.

A cut lies between two characters, and is right whatever else the text holds, where all that a tokenizer does in turn can
be told not to reach over it:

    added tokens    none is spelled over the cut, or takes white space or the border of a word into account there
    normalizer      goes by characters (or composes them), and leaves the two as they are
    pre-tokenizer   no match of its expressions can hold both characters or depend on the second from before it
                    (`Adjacency`), and one of its steps always cuts there; or else
    model           BPE, and no piece holds the two characters one after the other, so no merge leads over the cut

What stands before a text only (a space, say) would stand before every part. So a part begins with the character before
its cut, whose ids are then taken away: they are the same alone and before the part, for it is the same cut.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from llmforge.tokenizer import bytelevel
from llmforge.tokenizer.adjacency import Adjacency, UnknownError
from llmforge.tokenizer.formats.schemes import GPT2
from llmforge.tokenizer.formats.sentencepiece_model import SPACE
from llmforge.tokenizer.loading import backend_of

# What a cut can lie before. None of them is composed with what comes before, or belongs to its grapheme.
AFTER = " \n，。、,."
CANDIDATE = re.compile(rf"[^\s](?=[{AFTER}])")
BEHAVIOURS = ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext")
REFUSED = 100_000  # candidates, after which the rest of a text is not cut
WINDOW = 1 << 16
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class _Split:
    """A step of a pre-tokenizer: matches of an expression, and what becomes of them."""

    adjacency: Adjacency
    behavior: str

    def cuts(self, before: str, after: str) -> bool:
        """Whether it always cuts between the two, which no match holds both of."""
        ends, begins = self.adjacency.takes(before), self.adjacency.takes(after)
        if self.behavior in ("Isolated", "Removed"):
            return ends or begins
        return ends if self.behavior == "MergedWithPrevious" else begins


class Cuts:
    """The cuts of the tokenizer that `definition`, a whole `tokenizer.json`, describes."""

    def __init__(self, definition: dict[str, Any]) -> None:
        self.definition = definition
        self._safe: dict[tuple[str, str], bool] = {}

    def find(self, text: memoryview, size: int) -> list[int]:
        """Where to cut `text` (UTF-8) into parts of `size` bytes or somewhat more, rising; none at its ends."""
        cuts: list[int] = []
        at, refused = size, 0
        while at < len(text) and refused < REFUSED:
            while at < len(text) and text[at] & 0xC0 == 0x80:
                at += 1
            window = bytes(text[at : at + WINDOW]).decode("utf-8", "ignore")
            found = None
            for match in CANDIDATE.finditer(window):
                if self.safe(match[0], window[match.end()]):
                    found = match.end()
                    break
                refused += 1
            if found is not None:
                cuts.append(at + len(window[:found].encode()))
                at, refused = cuts[-1] + size, 0
            else:
                at += max(
                    1, len(window.encode()) - 4
                )  # the last character, which may stand before a cut, is seen again
        return cuts

    def safe(self, before: str, after: str) -> bool:
        """Whether a text can be cut between these two characters."""
        if (before, after) not in self._safe:
            try:
                self._safe[before, after] = self._is_safe(before, after)
            except UnknownError:
                self._safe[before, after] = False
        return self._safe[before, after]

    def _is_safe(self, before: str, after: str) -> bool:
        if not _is_settled(before) or self._added_reach(before, after):
            return False
        normalizer = self._normalizer
        if normalizer is not None:
            folded = (normalizer.normalize_str(before), normalizer.normalize_str(after))
            if folded[0] != before or folded[1] not in (after, after.replace(" ", SPACE)):
                return False
            after = folded[1]
        for step in self._steps:
            if step is None:  # the step that makes Metaspace's spaces
                after = after.replace(" ", SPACE)
                continue
            if step.adjacency.joins(before, after):
                return False
            if step.cuts(before, after):
                return True
        return self._model_keeps_apart(before, after)

    def _added_reach(self, before: str, after: str) -> bool:
        for token in self.definition["added_tokens"]:
            for content in (token["content"], token["content"].replace(SPACE, " ")):
                if before + after in content:
                    return True
                wide = token.get("lstrip") or token.get("rstrip") or token.get("single_word")
                if not token["special"] and wide and (content[-1:] == before or content[:1] == after):
                    return True
        return False

    @cached_property
    def _normalizer(self) -> Any:
        """The normalizer without what it puts before a text; None where there is none."""
        kept = []
        for step in _flat(self.definition.get("normalizer"), "normalizers"):
            kind = step["type"]
            if kind == "Prepend":
                continue
            one_character = kind == "Replace" and len(step["pattern"].get("String", "")) == 1
            if not one_character and kind not in ("NFC", "NFKC", "NFD", "NFKD", "Precompiled", "Lowercase"):
                raise UnknownError(kind)
            kept.append(step)
        if not kept:
            return None
        model = {"type": "BPE", "vocab": {}, "merges": []}
        bare: dict[str, Any] = {
            "added_tokens": [],
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": None,
            "model": model,
        }
        normalizer = {"type": "Sequence", "normalizers": kept}
        return backend_of({**self.definition, **bare, "normalizer": normalizer}, "the tokenizer").normalizer

    @cached_property
    def _steps(self) -> list[_Split | None]:
        steps: list[_Split | None] = []
        flat = _flat(self.definition.get("pre_tokenizer"), "pretokenizers")
        for number, step in enumerate(flat):
            kind = step["type"]
            if kind == "ByteLevel" and number == len(flat) - 1:  # what is behind it would see bytes
                steps += [_Split(_adjacency(GPT2), "Isolated")] if step.get("use_regex", True) else []
            elif kind == "Split" and step["behavior"] in BEHAVIOURS:
                given = step["pattern"]
                pattern = given["Regex"] if "Regex" in given else re.escape(given["String"])
                behavior = step["behavior"]
                if step.get("invert") and behavior not in ("Isolated", "Removed"):
                    raise UnknownError(kind)
                steps.append(_Split(_adjacency(pattern), behavior))
            elif kind == "Digits":
                each = step.get("individual_digits")
                steps.append(_Split(_adjacency(r"\p{N}" if each else r"\p{N}+"), "Isolated"))
            elif kind == "WhitespaceSplit":
                steps.append(_Split(_adjacency(r"\s+"), "Removed"))
            elif kind == "Metaspace" and step.get("replacement", SPACE) == SPACE:
                steps.append(None)
                if step.get("split", True):
                    steps.append(_Split(_adjacency(SPACE), "MergedWithNext"))
            else:
                raise UnknownError(kind)
        return steps

    def _model_keeps_apart(self, before: str, after: str) -> bool:
        model = self.definition["model"]
        if model["type"] != "BPE" or model.get("ignore_merges") or model.get("dropout"):
            return False
        byte_level = any(
            step["type"] == "ByteLevel"
            for step in _flat(self.definition.get("pre_tokenizer"), "pretokenizers")
        )
        if byte_level:
            before, after = (bytelevel.to_piece(one.encode()) for one in (before, after))
        elif not all(one in model["vocab"] or self._bytes_fall_back for one in (before, after)):
            return False  # unknown characters may be one token together
        both = before[-1] + after[0]
        return not self._merges_bytes and both not in self._pieces

    @cached_property
    def _pieces(self) -> str:
        """All pieces in one string, in which one is found a hundred times as fast as in each."""
        return "\n".join(self.definition["model"]["vocab"])

    @cached_property
    def _bytes_fall_back(self) -> bool:
        model = self.definition["model"]
        return bool(model.get("byte_fallback")) and all(f"<0x{i:02X}>" in model["vocab"] for i in range(256))

    @cached_property
    def _merges_bytes(self) -> bool:
        """Whether a merge takes a byte for a part, which is spelled as no character is."""
        return any(
            BYTE.search(piece) and not BYTE.fullmatch(piece) for piece in self.definition["model"]["vocab"]
        )


@lru_cache(maxsize=64)
def _adjacency(pattern: str) -> Adjacency:
    return Adjacency(pattern)


def _is_settled(character: str) -> bool:
    """Whether the character is a letter, number, mark or sign on which all libraries agree, as old as Unicode 3.2."""
    kind = unicodedata.category(character)
    return kind[0] in "LNPS" and kind == unicodedata.ucd_3_2_0.category(character)


def _flat(step: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as the steps that follow one another."""
    if step is None:
        return []
    return [one for part in step[inner] for one in _flat(part, inner)] if inner in step else [step]
