"""Continued BPE on flat arrays: new pieces are pairs of the tokens that a tokenizer makes of a corpus.

Training starts from the tokens, not from characters (Sennrich et al., arXiv 1508.07909, with another start),
so every new piece is made of two pieces that were there before it. Merging one pair at a time would read the
corpus once for each piece. A round here merges every pair whose frequency is within `slack` of the best, in
the order of frequency, and only if it still is once the better ones have taken their tokens. So the order
within a round is exact, and a pair that a round brings forth waits for the next one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

# Rounds are finer where pairs are rare: there are most of them there, and they take one another's tokens.
COARSE, FINE, RARE = 0.6, 0.9, 100
TABLE_BITS = (
    22  # a hashed table of pair frequencies: collisions only cost time, every candidate is counted exactly
)

Array = npt.NDArray[np.int64]


@dataclass
class Words:
    """The words of a corpus: flat `ids` (int32), `offsets` (int64, words + 1), a frequency for each word."""

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]


@dataclass
class Rules:
    """What may become a piece.

    `pieces` are the strings by id. Ids from `first_missing` on are characters that the tokenizer lacks, which
    it writes as `takes` tokens now (int64, one for each). Such a one is made a piece of its own as soon as it occurs
    `min_frequency` times and what it is `worth` (int64, for each time it occurs; 0: it is never made) is as much as a
    pair's frequency, and merges only then. A second pair that spells a new piece is merged for nothing; one that spells
    a piece below `first_missing` only if it is `shared` between all pairs that spell it (sentencepiece), and not
    where merges are listed, because a listed merge of an old piece would change old texts.
    """

    pieces: list[str]
    first_missing: int
    takes: Array
    worth: Array
    shared: bool
    min_frequency: int
    allowed: Callable[[str], bool]


@dataclass
class Learned:
    """New pieces in the order of their making, frequencies at that moment, and tokens of the corpus: at first, and after
    each round, with the number of pieces then (`curve`).
    """

    pieces: list[str] = field(default_factory=list)
    frequencies: list[int] = field(default_factory=list)
    tokens_before: int = 0
    curve: list[tuple[int, int]] = field(default_factory=list)

    @property
    def tokens_after(self) -> int:
        return self.curve[-1][1] if self.curve else self.tokens_before


def learn(
    words: Words, rules: Rules, number: int, advance: Callable[[float], None] = lambda _: None
) -> Learned:
    """Up to `number` new pieces; fewer when no pair occurs `min_frequency` times any more."""
    corpus = _Corpus(words, rules, number)
    learned = Learned(tokens_before=corpus.tokens())
    while len(learned.pieces) < number:
        found = corpus.round(number - len(learned.pieces))
        if found is None:
            break
        for piece, frequency in found:
            learned.pieces.append(piece)
            learned.frequencies.append(frequency)
        learned.curve.append((len(learned.pieces), corpus.tokens()))
        advance(float(len(found)))
    return learned


def slack(frequency: int) -> float:
    """How far below the best frequency the pairs of one round may be."""
    return COARSE if frequency >= RARE else FINE


class _Corpus:
    """The corpus as it stands between rounds.

    Per position: `token` (int32), `weight` (float64, the frequency of its word), `linked` (the next position belongs
    to the same word) and `place` (uint32, where in `table` the pair that begins here is
    counted; 0 for none). `table` (float64) holds the frequencies of all pairs, those of one place added together.
    """

    def __init__(self, words: Words, rules: Rules, number: int) -> None:
        self.rules = rules
        self.pieces = rules.pieces
        self.ids = {piece: i for i, piece in enumerate(rules.pieces) if piece}
        lengths = np.diff(words.offsets)
        self.token = words.ids.copy()
        self.weight = np.repeat(words.counts.astype(np.float64), lengths)
        self.linked = np.ones(len(self.token), dtype=bool)
        self.linked[words.offsets[1:][lengths > 0] - 1] = False
        missing = len(self.pieces) - rules.first_missing
        waiting = self.token >= rules.first_missing
        times = np.bincount(
            self.token[waiting] - rules.first_missing, self.weight[waiting], minlength=missing
        )
        self.times = times.astype(np.int64)
        self.gain = np.where(self.times >= rules.min_frequency, self.times * rules.worth, 0)
        self.active = np.ones(len(self.pieces) + number, dtype=bool)
        self.active[rules.first_missing : len(self.pieces)] = False
        self.place = np.zeros(len(self.token), dtype=np.uint32)
        self.table = np.zeros(1 << TABLE_BITS)
        self._count(np.arange(len(self.token) - 1))

    def tokens(self) -> int:
        """Tokens in the corpus, each missing character counting for what it takes now."""
        waiting = ~self.active[self.token]
        missing = self.token[waiting] - self.rules.first_missing
        return int(self.weight.sum() + self.weight[waiting] @ (self.rules.takes[missing] - 1))

    def round(self, most: int) -> list[tuple[str, int]] | None:
        """At most `most` new pieces with frequencies (none if known ones were joined); None at the end."""
        keys, counts, where, which, least = self._frequent_pairs()
        found = self._take_characters(least, most)
        chosen = np.flatnonzero(counts >= least)
        chosen = chosen[np.lexsort((keys[chosen], -counts[chosen]))]
        if not len(chosen):
            return found or None
        rank = np.full(len(keys), len(chosen), dtype=np.int64)
        rank[chosen] = np.arange(len(chosen))
        ranks = rank[which]
        where, ranks = where[ranks < len(chosen)], ranks[ranks < len(chosen)]
        won = _leftmost_best(where, ranks)
        actual = np.bincount(ranks[won], self.weight[where[won]], minlength=len(chosen)).astype(np.int64)
        target = np.full(len(chosen), -1, dtype=np.int64)
        # The best pair is always made: it falls short only if it overlaps itself, as in "aaa".
        for i in np.flatnonzero((actual >= least) | (np.arange(len(chosen)) == 0)).tolist():
            if len(found) >= most:
                break
            target[i] = self._id_of(self._joined(int(keys[chosen[i]])), int(actual[i]), found)
        where, ranks = where[target[ranks] >= 0], ranks[target[ranks] >= 0]
        won = _leftmost_best(where, ranks)
        self._merge(where[won], target[ranks[won]])
        return found

    def _frequent_pairs(self) -> tuple[Array, Array, Array, Array, int]:
        """The pairs near the best, exactly counted.

        Keys and frequencies of the pairs; where pairs are (position, index of its pair), by position; and the
        frequency that is near enough.
        """
        best_gain = int(self.gain.max(initial=0))
        bound = max(int(self.table.max()), best_gain)
        while True:
            least = max(int(slack(bound) * bound), self.rules.min_frequency)
            where = np.flatnonzero((self.table >= least)[self.place])
            pairs = (self.token[where].astype(np.int64) << 32) | self.token[where + 1]
            keys, which = np.unique(pairs, return_inverse=True)
            counts = np.bincount(which, self.weight[where], minlength=len(keys)).astype(np.int64)
            refused = np.array([not self._may_be_made(key) for key in keys.tolist()], dtype=bool)
            if refused.any():
                # Until one of the two grows: "\\n" + " " may not be a piece where "\\n" + " \\n" may.
                self._uncount(where[refused[which]])
                counts[refused] = 0
            if max(counts.max(initial=0), best_gain) >= least or least == self.rules.min_frequency:
                return keys, counts, where, which, least
            # What looked best was several pairs in one place, or may not be made: all pairs are rarer than that.
            bound = least

    def _joined(self, key: int) -> str:
        return self.pieces[key >> 32] + self.pieces[key & 0xFFFFFFFF]

    def _may_be_made(self, key: int) -> bool:
        joined = self._joined(key)
        return self.rules.allowed(joined) and (
            self.rules.shared or self.ids.get(joined, self.rules.first_missing) >= self.rules.first_missing
        )

    def _id_of(self, piece: str, frequency: int, found: list[tuple[str, int]]) -> int:
        """The id of `piece`, new if need be and then noted in `found`."""
        if piece in self.ids:
            return self.ids[piece]
        found.append((piece, frequency))
        self.ids[piece] = len(self.pieces)
        self.pieces.append(piece)
        return len(self.pieces) - 1

    def _take_characters(self, least: int, most: int) -> list[tuple[str, int]]:
        """The missing characters that are worth a piece now, the most frequent first."""
        worth = np.flatnonzero((self.gain >= least) & (self.gain > 0))
        worth = worth[np.argsort(-self.gain[worth], kind="stable")][:most]
        taken = worth + self.rules.first_missing
        found = [(self.pieces[i], int(n)) for i, n in zip(taken, self.times[worth], strict=True)]
        self.active[taken] = True
        self.gain[worth] = 0
        if found:
            chosen = np.zeros(len(self.pieces), dtype=bool)
            chosen[taken] = True
            here = np.flatnonzero(chosen[self.token])
            self._count(here, here - 1)
        return found

    def _merge(self, where: Array, target: Array) -> None:
        """Makes the tokens at `where` (ascending after sorting) and behind them one, `target`."""
        order = np.argsort(where)
        where, target = where[order], target[order]
        self._uncount(where - 1, where, where + 1)
        self.token[where] = target
        self.linked[where] = self.linked[where + 1]
        kept = np.ones(len(self.token), dtype=bool)
        kept[where + 1] = False
        self.token, self.weight = self.token[kept], self.weight[kept]
        self.linked, self.place = self.linked[kept], self.place[kept]
        where = where - np.arange(len(where))
        self._count(where - 1, where)

    def _count(self, *where: Array) -> None:
        """Notes the pairs that begin at `where`, if they may merge and are not noted yet."""
        begin = np.flatnonzero(self._marked(where) & self.linked & (self.place == 0))
        left, right = self.token[begin], self.token[begin + 1]
        both = self.active[left] & self.active[right]
        begin = begin[both]
        places = place(left[both], right[both])
        self.place[begin] = places
        self.table += np.bincount(places, self.weight[begin], minlength=len(self.table))

    def _uncount(self, *where: Array) -> None:
        """Takes the pairs that begin at `where` out of the table, those that are in it."""
        begin = np.flatnonzero(self._marked(where) & (self.place != 0))
        self.table -= np.bincount(self.place[begin], self.weight[begin], minlength=len(self.table))
        self.place[begin] = 0

    def _marked(self, where: tuple[Array, ...]) -> npt.NDArray[np.bool_]:
        """A mask of all positions of the corpus that are in one of `where`."""
        mask = np.zeros(len(self.token), dtype=bool)
        for positions in where:
            mask[positions[(positions >= 0) & (positions < len(mask))]] = True
        return mask


def place(left: npt.NDArray[np.int32], right: npt.NDArray[np.int32]) -> npt.NDArray[np.uint32]:
    """Where in a table of 2 ** `TABLE_BITS` places each pair of ids stands; never 0."""
    mixed: npt.NDArray[np.uint32] = left.astype(np.uint32) * np.uint32(0x9E3779B1)
    mixed += right.astype(np.uint32) * np.uint32(0x85EBCA77)
    mixed >>= np.uint32(32 - TABLE_BITS)
    mixed[mixed == 0] = 1
    return mixed


def _leftmost_best(where: Array, ranks: Array) -> Array:
    """Which of the pairs at `where` (ascending) are merged if the lowest rank goes first, then the leftmost.

    Two pairs contend if they share a token, that is, if their positions are neighbors. Returns indices into
    `where`.
    """
    alive = np.arange(len(where))
    won: list[Array] = []
    while len(alive):
        place, rank = where[alive], ranks[alive]
        near = np.diff(place) == 1
        wins = np.ones(len(alive), dtype=bool)
        wins[1:] &= ~near | (rank[1:] < rank[:-1])
        wins[:-1] &= ~near | (rank[:-1] <= rank[1:])
        won.append(alive[wins])
        loses = wins.copy()
        loses[1:] |= wins[:-1] & near
        loses[:-1] |= wins[1:] & near
        alive = alive[~loses]
    return np.concatenate(won) if won else np.zeros(0, dtype=np.int64)
