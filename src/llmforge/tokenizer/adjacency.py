"""Which characters a regular expression can look at one after the other, for the expressions by which pre-tokenizers cut.

The positions of an expression and those that can follow each (Glushkov's construction) tell it: where no atom that takes
`x` is followed by one that takes `y`, no match holds `xy`, and none before `y` depends on what comes from `y` on. Looking
ahead counts as following, whether it succeeds or not.
"""

from dataclasses import dataclass, field
from functools import cached_property

import regex

# An atom that takes no character, but looks at the next, whatever it is: the end of a line or a text, a border of a word.
ANYTHING = ""
SIMPLE = frozenset("sSdDwWrntfve")
HERE = frozenset("AG")  # what is true or not where a match begins: it looks at nothing behind


class UnknownError(Exception):
    """The expression holds something that this file does not know."""


@dataclass(frozen=True)
class _Part:
    """Of a part of an expression, as numbers of atoms: those that can come `first` and `last`, and the `alone`, each of
    which is a match by itself whatever follows. `nullable`: it can take nothing; `skippable`: it always can.
    """

    first: frozenset[int] = frozenset()
    last: frozenset[int] = frozenset()
    alone: frozenset[int] = frozenset()
    nullable: bool = False
    skippable: bool = False


EMPTY = _Part(nullable=True, skippable=True)


@dataclass
class Adjacency:
    """What `pattern` looks at; `UnknownError` where that cannot be told."""

    pattern: str
    _atoms: list[tuple[str, bool]] = field(
        default_factory=list, init=False
    )  # (atom, whether case is ignored)
    _pairs: set[tuple[int, int]] = field(default_factory=set, init=False)
    _at: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._whole = self._alternatives(False)
        if self._at < len(self.pattern) or self._whole.nullable:
            raise UnknownError(self.pattern)

    def joins(self, before: str, after: str) -> bool:
        """Whether a match, or what decides over one, can reach from the character `before` to `after` behind it."""
        left, right = self._taking(before), self._taking(after)
        return any(a in left and b in right for a, b in self._pairs)

    def takes(self, character: str) -> bool:
        """Whether a match takes `character` wherever it stands, if no match from before does."""
        return not self._whole.alone.isdisjoint(self._taking(character))

    def _taking(self, character: str) -> set[int]:
        return {i for i, atom in enumerate(self._matchers) if atom is None or atom.fullmatch(character)}

    @cached_property
    def _matchers(self) -> list[regex.Pattern[str] | None]:
        try:
            return [
                regex.compile(atom, regex.V1 | (regex.IGNORECASE if ignored else 0)) if atom else None
                for atom, ignored in self._atoms
            ]
        except regex.error:
            raise UnknownError(self.pattern) from None

    def _next(self, text: str) -> bool:
        """Whether `text` comes next; if so, goes past it."""
        found = self.pattern.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def _alternatives(self, ignored: bool) -> _Part:
        parts = [self._sequence(ignored)]
        while self._next("|"):
            parts.append(self._sequence(ignored))
        return _Part(
            frozenset().union(*(part.first for part in parts)),
            frozenset().union(*(part.last for part in parts)),
            frozenset().union(*(part.alone for part in parts)),
            nullable=any(part.nullable for part in parts),
            skippable=any(part.skippable for part in parts),
        )

    def _sequence(self, ignored: bool) -> _Part:
        whole = EMPTY
        while self._at < len(self.pattern) and self.pattern[self._at] not in "|)":
            part = self._repeated(ignored)
            self._pairs |= {(a, b) for a in whole.last for b in part.first}
            whole = _Part(
                whole.first | (part.first if whole.nullable else frozenset()),
                part.last | (whole.last if part.nullable else frozenset()),
                (whole.alone if part.skippable else frozenset())
                | (part.alone if whole.skippable else frozenset()),
                whole.nullable and part.nullable,
                whole.skippable and part.skippable,
            )
        return whole

    def _repeated(self, ignored: bool) -> _Part:
        part = self._one(ignored)
        while (
            found := regex.compile(r"([?*+]|\{\d*,?\d*\})([?+]?)").match(self.pattern, self._at)
        ) is not None:
            self._at = found.end()
            many = found[1].strip("{}")
            least, _, most = many.partition(",")
            optional = many in "?*" or (least in ("", "0") and many != "+")
            if many != "?" and (many in "*+" or most != "1" or not least):
                self._pairs |= {(a, b) for a in part.last for b in part.first}
            once = many in ("?", "*", "+") or least in ("", "0", "1")
            part = _Part(
                part.first,
                part.last,
                part.alone if once else frozenset(),
                part.nullable or optional,
                # What is possessive does not give back the character that the atom behind it is to take.
                (part.skippable or optional) and found[2] != "+",
            )
        return part

    def _one(self, ignored: bool) -> _Part:
        start = self._at
        character = self.pattern[start]
        if character == "(":
            return self._group(ignored)
        if character == "[":
            return self._atom(self._set(), ignored)
        self._at += 1
        if character == "^":
            return EMPTY
        if character == "$":
            return self._looking(self._atom(ANYTHING, ignored))
        if character == "\\":
            return self._escape(start, ignored)
        if character in "?*+{}]":
            raise UnknownError(self.pattern)
        return self._atom(character if character == "." else regex.escape(character), ignored)

    def _escape(self, start: int, ignored: bool) -> _Part:
        kind = self.pattern[self._at : self._at + 1]
        self._at += 1
        if kind in ("p", "P"):
            end = self.pattern.find("}", self._at)
            if not self._next("{") or end < 0:
                raise UnknownError(self.pattern)
            self._at = end + 1
        elif kind in ("b", "B", "z", "Z"):
            return self._looking(self._atom(ANYTHING, ignored))
        elif kind in HERE:
            return EMPTY
        elif kind == "" or (kind.isalnum() and kind not in SIMPLE):
            raise UnknownError(self.pattern)
        return self._atom(self.pattern[start : self._at], ignored)

    def _set(self) -> str:
        """The set of characters that begins here; sets in it are as in version 1 of `regex`."""
        start, depth = self._at, 0
        while self._at < len(self.pattern):
            character = self.pattern[self._at]
            self._at += 2 if character == "\\" else 1
            depth += (character == "[") - (character == "]")
            if depth == 0:
                text = self.pattern[start : self._at]
                if any(odd in text for odd in ("--", "||", "~~", "[:", "[]", "[^]")):
                    break
                return text
        raise UnknownError(self.pattern)

    def _group(self, ignored: bool) -> _Part:
        self._at += 1
        looking = False
        if self._next("?"):
            if self._next("i:"):
                ignored = True
            elif self._next("=") or self._next("!"):
                looking = True
            elif not self._next(":"):
                raise UnknownError(self.pattern)
        part = self._alternatives(ignored)
        if not self._next(")"):
            raise UnknownError(self.pattern)
        return self._looking(part) if looking else part

    def _looking(self, part: _Part) -> _Part:
        """`part` as it looks ahead: what follows it follows what came before as well."""
        return _Part(part.first, frozenset(), frozenset(), nullable=True)

    def _atom(self, atom: str, ignored: bool) -> _Part:
        self._atoms.append((atom, ignored))
        one = frozenset({len(self._atoms) - 1})
        return _Part(one, one, one)
