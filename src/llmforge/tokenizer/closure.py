"""Which pieces must be added so that every wanted piece is really produced ("closure").

Pieces are taken in order. Each is encoded with the source's merges and those of the pieces before it. Two
tokens: the piece is their merge. More: its missing characters are made first, then the parts in between, each
a piece of its own. A later piece merges after all earlier ones, so what was reachable once stays so.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from llmforge.tokenizer import bytelevel

Pair = tuple[str, str]


@dataclass
class Additions:
    """What to add, in order: each piece with the pair that makes it (None: a character, made by no merge).

    `closure` are those that nobody asked for; `unreachable` the wanted pieces that are not added, with the
    reason.
    """

    made: list[tuple[str, Pair | None]] = field(default_factory=list)
    closure: list[str] = field(default_factory=list)
    unreachable: dict[str, str] = field(default_factory=dict)


class Model(Protocol):
    """A tokenizer model that grows piece by piece."""

    def has(self, piece: str) -> bool:
        """Whether `piece` is in the vocabulary, or means something else there, so that no merge may make it."""

    def encode(self, piece: str) -> list[str]:
        """The parts that `piece` is cut into now; a character that is no piece is a part as well."""

    def needed(self, piece: str) -> list[str]:
        """The characters of `piece` that have to be single parts before longer ones are made."""

    def add(self, piece: str, pair: Pair | None) -> None:
        """Adds `piece`, made of `pair`, which merges after all others."""

    def add_all(self, pieces: Sequence[str]) -> None:
        """Adds `pieces` in that order, each made of whatever two parts the finished vocabulary has."""


class ByScore:
    """sentencepiece BPE: any two parts that spell a piece merge, the best score first.

    `reserved` are the names of control pieces and the like, which are made of nothing.
    """

    def __init__(self, scores: Mapping[str, float], reserved: Collection[str] = ()) -> None:
        self.ranks = {piece: -score for piece, score in scores.items()}
        self.last = max(self.ranks.values(), default=0.0)
        self.reserved = frozenset(reserved)

    def has(self, piece: str) -> bool:
        return piece in self.ranks or piece in self.reserved

    def encode(self, piece: str) -> list[str]:
        return merge_lowest(list(piece), lambda left, right: self.ranks.get(left + right))

    def needed(self, piece: str) -> list[str]:
        return [character for character in piece if not self.has(character)]

    def add(self, piece: str, pair: Pair | None) -> None:
        self.last += 1
        self.ranks[piece] = self.last

    def add_all(self, pieces: Sequence[str]) -> None:
        for piece in pieces:
            self.add(piece, None)


class ByList:
    """BPE with listed merges: byte-level, or sentencepiece of which only `tokenizer.json` is left."""

    def __init__(self, vocabulary: Collection[str], merges: Sequence[Pair], byte_level: bool) -> None:
        self.pieces = set(vocabulary)
        self.ranks = {pair: float(i) for i, pair in enumerate(merges)}
        self.byte_level = byte_level

    def has(self, piece: str) -> bool:
        return piece in self.pieces

    def encode(self, piece: str) -> list[str]:
        return merge_lowest(list(piece), lambda left, right: self.ranks.get((left, right)))

    def needed(self, piece: str) -> list[str]:
        if not self.byte_level:
            return [character for character in piece if character not in self.pieces]
        raw = bytelevel.to_bytes(piece)
        if raw is None or len(self.encode(piece)) <= 2:
            return []
        try:
            return [bytelevel.to_piece(character.encode()) for character in raw.decode("utf-8")]
        except UnicodeDecodeError:
            return []

    def add(self, piece: str, pair: Pair | None) -> None:
        """Lists the merge of `pair`, and behind it those of all other two parts that spell a new piece."""
        self.pieces.add(piece)
        if pair is None:
            return
        self.ranks.setdefault(pair, float(len(self.ranks)))
        self._list_pairs(piece)

    def add_all(self, pieces: Sequence[str]) -> None:
        self.pieces.update(pieces)
        for piece in pieces:
            self._list_pairs(piece)

    def _list_pairs(self, piece: str) -> None:
        for i in range(1, len(piece)):
            if piece[:i] in self.pieces and piece[i:] in self.pieces:
                self.ranks.setdefault((piece[:i], piece[i:]), float(len(self.ranks)))


def close(wanted: Sequence[str], model: Model, closure: bool = True) -> Additions:
    """What to add to `model`, which grows meanwhile, so that it produces every piece of `wanted`.

    With `closure` false these are the pieces of `wanted` and no others, in that order; which of them are produced
    is then for the finished vocabulary to tell.
    """
    result = Additions()
    if not closure:
        model.add_all(wanted)
        result.made = [(piece, None) for piece in wanted]
        return result
    asked = set(wanted)
    for piece in wanted:
        if model.has(piece):  # made already, on the way to an earlier one
            continue
        for made, pair in _steps(piece, model, asked):
            result.made.append((made, pair))
            if made not in asked:
                result.closure.append(made)
        if not model.has(piece):
            parts = model.encode(piece)
            result.unreachable[piece] = f"{' + '.join(parts)} only make pieces that the source never makes"
    return result


def merge_lowest(parts: list[str], rank: Callable[[str, str], float | None]) -> list[str]:
    """BPE: merges the pair of the lowest rank, of equal ones the leftmost, until none has a rank."""
    while len(parts) > 1:
        ranked = [(r, i) for i, pair in enumerate(pairwise(parts)) if (r := rank(*pair)) is not None]
        if not ranked:
            break
        _, i = min(ranked)
        parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]
    return parts


def _steps(piece: str, model: Model, asked: set[str]) -> Iterator[tuple[str, Pair | None]]:
    """Adds to `model` what `piece` needs, and `piece`; yields each with its pair."""
    for character in dict.fromkeys(model.needed(piece)):
        if character != piece:
            yield from _fold(character, model, asked)
    yield from _fold(piece, model, asked)


def _fold(piece: str, model: Model, asked: set[str]) -> Iterator[tuple[str, Pair | None]]:
    parts = model.encode(piece)
    if len(parts) == 1 and not model.has(piece):
        model.add(piece, None)
        yield piece, None
    while len(parts) > 1:
        pairs = list(pairwise(parts))
        # A part that is asked for anyway costs nothing. One that the source has but never makes must stay so: a
        # merge for it would change texts that have no new piece in them.
        wishes = [
            i
            for i, (left, right) in enumerate(pairs)
            if left + right in asked and not model.has(left + right)
        ]
        fresh = [i for i, (left, right) in enumerate(pairs) if not model.has(left + right)]
        if not fresh:
            return
        pair = pairs[[*wishes, *fresh][0]]
        joined = pair[0] + pair[1]
        model.add(joined, pair)
        yield joined, pair
        parts = model.encode(piece)
