"""Which tokens a tokenizer can do without, and the tokenizer without them.

A BPE token may leave if no merge of a kept token needs it. What contains such a token keeps it to the end, since nothing is
merged from it; so a text whose tokens are all kept makes none of the others on the way, and its merges are what they were.
Of a unigram model any token may leave: the best path of such a text is still there, and is still the best.
"""

import copy
import heapq
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llmforge.tokenizer.definition import Definition
from llmforge.tokenizer.formats import sentencepiece_model as spm
from llmforge.tokenizer.loading import BYTE_PIECE, Tokenizer

Int64 = npt.NDArray[np.int64]
IDS_OF_TRAINER = ("bos_id", "eos_id", "unk_id", "pad_id")


def protected(tokenizer: Tokenizer) -> set[int]:
    """Ids that stay whatever is used: unused ids, added tokens, bytes, what sentencepiece has other than normal pieces,
    and the characters without which a text would become unknown.
    """
    value, proto = tokenizer.definition.json, tokenizer.definition.model
    model, pieces = value["model"], tokenizer.pieces()
    bytes_too = tokenizer.family != "byte-level-bpe" and model["byte_fallback"]
    kept = {token["id"] for token in value["added_tokens"]}
    kept |= {i for i, piece in enumerate(pieces) if not piece or BYTE_PIECE.fullmatch(piece)}
    kept |= {i for i, piece in enumerate(pieces) if piece == spm.SPACE or (len(piece) == 1 and not bytes_too)}
    kept |= {i for i, piece in enumerate(proto.pieces if proto else ()) if piece.type != spm.NORMAL}
    if tokenizer.family == "sentencepiece-unigram":
        # What an unknown character costs is counted from the lowest score.
        kept |= {
            model["unk_id"],
            min(
                (i for i in range(len(pieces)) if i not in kept),
                key=lambda i: model["vocab"][i][1],
                default=None,
            ),
        } - {None}
    elif model["unk_token"] is not None:
        kept.add(model["vocab"][model["unk_token"]])
    return kept


def removal_order(tokenizer: Tokenizer, counts: Int64, kept: Collection[int]) -> Iterator[tuple[int, int]]:
    """The ids that may leave, each with its uses, the least used first and of equal ones the last: `counts` int64 [size]
    are the uses by id, and the uses of a token that left are then those of its parts.

    A token comes up only after all that need it, and those of `kept` never.
    """
    uses = counts.tolist()
    pieces = tokenizer.pieces()
    parts: _Merges | _Paths = (
        _Paths(tokenizer) if tokenizer.family == "sentencepiece-unigram" else _Merges(tokenizer)
    )
    free = [(uses[i], -i) for i in range(len(pieces)) if i not in kept and not parts.needed[i]]
    heapq.heapify(free)
    while free:
        seen, minus = heapq.heappop(free)
        number = -minus
        if uses[number] != seen:  # grown meanwhile
            heapq.heappush(free, (uses[number], minus))
            continue
        yield number, seen
        spelled, freed = parts.remove(number)
        for part in spelled:
            uses[part] += seen
        for part in freed:
            if part not in kept:
                heapq.heappush(free, (uses[part], -part))


class _Merges:
    """What the tokens of a BPE are merged from; `needed`: by how many merges of kept tokens each is."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        model = tokenizer.definition.json["model"]
        vocab, merges = model["vocab"], model["merges"]
        proto = tokenizer.definition.model
        if proto is not None and any(piece.type == spm.UNUSED for piece in proto.pieces):
            # sentencepiece merges through those, which tokenizer.json cannot.
            joining = (spm.NORMAL, spm.UNUSED)
            scores = {piece.piece: piece.score for piece in proto.pieces if piece.type in joining}
            merges = spm.merges_by_score(scores)
        self.made_of: dict[int, list[tuple[int, int]]] = {}
        self.needed: Counter[int] = Counter()
        for left, right in merges:
            pair = (vocab[left], vocab[right])
            self.made_of.setdefault(vocab[left + right], []).append(pair)
            self.needed.update(pair)

    def remove(self, number: int) -> tuple[tuple[int, ...], list[int]]:
        """The ids that spell the token from now on, and those that no kept token needs any more."""
        merges = self.made_of.pop(number, [])
        parts = [part for pair in merges for part in pair]
        self.needed.subtract(parts)
        return (merges[0] if merges else ()), [part for part in dict.fromkeys(parts) if not self.needed[part]]


class _Paths:
    """What the tokens of a unigram model would be spelled by."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocab = tokenizer.definition.json["model"]["vocab"]
        special = {token["id"] for token in tokenizer.definition.json["added_tokens"]}
        self.names = tokenizer.pieces()
        self.known = {piece: (i, score) for i, (piece, score) in enumerate(vocab) if i not in special}
        self.needed: Mapping[int, int] = Counter()

    def remove(self, number: int) -> tuple[tuple[int, ...], list[int]]:
        """The ids of the best path through the token's piece, none where there is no path; and nobody."""
        piece = self.names[number]
        del self.known[piece]
        best: list[tuple[float, tuple[int, ...]]] = [(0.0, ()), *[(-math.inf, ())] * len(piece)]
        for end in range(1, len(piece) + 1):
            for start in range(end):
                found = self.known.get(piece[start:end])
                if found and (score := best[start][0] + found[1]) > best[end][0]:
                    best[end] = score, (*best[start][1], found[0])
        return best[-1][1], []


@dataclass(frozen=True)
class Renumbering:
    """`new_ids` int64 [old size]: the new id of each old one, -1 for those that left."""

    new_ids: Int64

    @classmethod
    def without(cls, removed: Collection[int], size: int) -> "Renumbering":
        stays = np.ones(size, np.bool_)
        stays[list(removed)] = False
        return cls(np.where(stays, np.cumsum(stays) - 1, -1))

    @property
    def removed(self) -> int:
        """How many left."""
        return int((self.new_ids < 0).sum())

    def __call__(self, number: int) -> int:
        """The new id of one that stays. Ids beyond the tokenizer's, those of padding rows, move with the rest."""
        if number < 0:
            return number
        return number - self.removed if number >= len(self.new_ids) else int(self.new_ids[number])


def pruned_definition(definition: Definition, pieces: list[str], ids: Renumbering) -> Definition:
    """`definition` with the tokens that `ids` keeps; `pieces` are its pieces by id."""
    value = dict(definition.json)
    removed = {pieces[i] for i in np.flatnonzero(ids.new_ids < 0)}
    model = value["model"] = dict(value["model"])
    if isinstance(model["vocab"], list):
        model["vocab"] = [entry for entry in model["vocab"] if entry[0] not in removed]
        if model["unk_id"] is not None:
            model["unk_id"] = ids(model["unk_id"])
    else:
        model["vocab"] = {piece: ids(i) for piece, i in model["vocab"].items() if piece not in removed}
        model["merges"] = [(left, right) for left, right in model["merges"] if left + right not in removed]
    value["added_tokens"] = [{**token, "id": ids(token["id"])} for token in value["added_tokens"]]
    value["post_processor"] = _renumbered_processor(value["post_processor"], ids)
    proto = definition.model
    if proto is not None:
        proto = copy.deepcopy(proto)
        stay = [piece for i, piece in enumerate(proto.pieces) if ids(i) >= 0]
        del proto.pieces[:]
        proto.pieces.extend(stay)
        for name in IDS_OF_TRAINER:
            setattr(proto.trainer_spec, name, ids(getattr(proto.trainer_spec, name)))
        proto.trainer_spec.vocab_size = len(stay)
        proto.DiscardUnknownFields()  # such as samples of the tokens that the whole model makes, which are tried
    return replace(definition, json=value, model=proto)


def _renumbered_processor(processor: Any, ids: Renumbering) -> Any:
    """A post-processor with the new ids of the special tokens that it puts around a text."""
    if not processor:
        return processor
    made = dict(processor)
    if made["type"] == "Sequence":
        made["processors"] = [_renumbered_processor(part, ids) for part in made["processors"]]
    for name in ("cls", "sep"):
        if name in made:
            made[name] = [made[name][0], ids(made[name][1])]
    if made["type"] == "TemplateProcessing":
        made["special_tokens"] = {
            name: {**token, "ids": [ids(i) for i in token["ids"]]}
            for name, token in made["special_tokens"].items()
        }
    return made
