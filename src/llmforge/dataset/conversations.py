"""Conversations to ids: rendered by a chat template, the assistant's answers trained."""

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llmforge.console import warn
from llmforge.corpus import Block, Rejection, Spans
from llmforge.dataset.encoding import Encoded, Encoder
from llmforge.errors import UserError
from llmforge.tokenizer import Tokenizer, load
from llmforge.tokenizer.chat_template import ChatTemplate

SPLIT = ("conversations", "parts", "longer")  # what `ChatEncoder.split` counts


@dataclass(frozen=True)
class ChatSettings:
    """How conversations become ids: by `tokenizer` (its directory and scheme) and `template` (a file, a name, or None for
    the tokenizer's own); `last`: the last answer alone is trained. Longer ones than `row` tokens are split; None: none is.
    """

    tokenizer: Path
    scheme: str | None
    template: Path | None
    last: bool
    row: int | None = None


@dataclass(frozen=True)
class _Rendered:
    """The ids (n,) int32 of a conversation, and which of them are trained (n,) bool."""

    ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]


class ChatEncoder:
    """Encodes blocks of which some documents are conversations; `encoder` encodes the others. `split` counts, where long ones
    are split: conversations, their parts, and how many are longer than a row even so.
    """

    def __init__(self, settings: ChatSettings, encoder: Encoder) -> None:
        self.settings, self.encoder = settings, encoder
        _, self.template = open_template(settings)
        self.rendered: dict[str, _Rendered] = {}
        self.split: Counter[str] = Counter()

    def render(self, block: Block) -> Block:
        """`block` without the conversations that the template cannot render, which are `rejected` then, and with the parts of
        those that are split, one behind the other. A part keeps the text of the whole, by which it is judged.
        """
        self.rendered = {}
        if block.conversations is None:
            return block
        refused: list[Rejection] = []
        wanted: list[int] = []
        conversations: list[str | None] = []
        for number, conversation in enumerate(block.conversations.to_pylist()):
            parts: list[str | None] = [conversation]
            if conversation is not None:
                try:
                    parts = list(self._parts(conversation))
                except UserError as error:
                    refused.append(Rejection(int(block.line[number]), str(error).rstrip(".")))
                    continue
            wanted += [number] * len(parts)
            conversations += parts
        kept = block.take(np.array(wanted, np.int64))
        conversations_of = pa.array(conversations, pa.string())
        return replace(kept, conversations=conversations_of, rejected=[*block.rejected, *refused])

    def _parts(self, conversation: str) -> list[str]:
        """`conversation` alone, or the conversations that it is split into; all are rendered."""
        whole, row = self._render(conversation), self.settings.row
        made = {conversation: whole}
        if row is not None and len(whole.ids) > row:
            value = json.loads(conversation)
            parts = split_at_turns(
                value["messages"], lambda part: self.template.length(part, value.get("tools")) <= row
            )
            if len(parts) > 1:
                texts = [json.dumps({**value, "messages": part}, ensure_ascii=False) for part in parts]
                made = {text: self._render(text) for text in texts}
                self.split.update(conversations=1, parts=len(parts))
                self.rendered |= made
                self.split.update(longer=sum(len(made[text].ids) > row for text in texts))
                return texts
            self.split.update(longer=1)
        self.rendered |= made
        return [conversation]

    def _render(self, conversation: str) -> _Rendered:
        value = json.loads(conversation)
        ids, trained = self.template.training(value["messages"], value.get("tools"), self.settings.last)
        if not trained[1:].any():
            raise UserError("the chat template renders no answer")
        return _Rendered(ids, trained)

    def encode(self, block: Block) -> Encoded:
        """The ids of what `render` gave last, in any order."""
        own = [
            None if one is None else self.rendered[one]
            for one in (
                block.conversations.to_pylist() if block.conversations is not None else [None] * len(block)
            )
        ]
        others = np.flatnonzero([one is None for one in own])
        plain = self.encoder.encode(block.take(others))
        ids: list[npt.NDArray[np.int32]] = [np.zeros(0, np.int32)]
        untrained: list[list[tuple[int, int]]] = []
        trained_bytes = np.zeros(len(block), np.int64)
        trained_bytes[others] = plain.trained_bytes
        place = dict(zip(others.tolist(), range(len(others)), strict=True))
        for number, one in enumerate(own):
            if one is None:
                at = place[number]
                ids.append(plain.ids[plain.offsets[at] : plain.offsets[at + 1]])
                untrained.append(list(plain.untrained.pairs(at)))
            else:
                ids.append(one.ids)
                untrained.append(_runs(~one.trained))
                trained_bytes[number] = int(self.encoder.token_bytes[one.ids[one.trained]].sum())
        offsets = np.cumsum([len(one) for one in ids])
        return Encoded(np.concatenate(ids), offsets, Spans.of(untrained), trained_bytes)


def split_at_turns(
    messages: Sequence[dict[str, Any]], fits: Callable[[list[dict[str, Any]]], bool]
) -> list[list[dict[str, Any]]]:
    """`messages` as conversations of as many turns as `fits` lets in, in their order: each begins with the system message, if
    there is one, and a question of the user, and has an answer. A single turn that does not fit is one by itself.
    """
    system = [one for one in messages[:1] if one["role"] == "system"]
    turns: list[list[dict[str, Any]]] = []
    for one in messages[len(system) :]:
        answered = turns and any(said["role"] == "assistant" for said in turns[-1])
        if one["role"] == "user" and (answered or not turns):
            turns.append([])
        turns[-1].append(one)
    if len(turns) > 1 and not any(said["role"] == "assistant" for said in turns[-1]):
        turns[-2:] = [turns[-2] + turns[-1]]  # a last question without an answer

    def joined(begin: int, end: int) -> list[dict[str, Any]]:
        return [*system, *(one for turn in turns[begin:end] for one in turn)]

    parts, begin = [], 0
    while begin < len(turns):
        more = range(begin + 2, len(turns) + 1)
        end = begin + 1 + bisect_left(more, True, key=lambda at: not fits(joined(begin, at)))
        parts.append(joined(begin, end))
        begin = end
    return parts


def _runs(mask: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(begin, end) of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8))).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


@lru_cache(maxsize=1)
def open_template(settings: ChatSettings) -> tuple[Tokenizer, ChatTemplate]:
    """The tokenizer and the template of `settings`, once in a process; `UserError` where there is none, or where one of
    llmforge's own needs special tokens that the tokenizer lacks.
    """
    tokenizer = load(settings.tokenizer, settings.scheme)
    return tokenizer, ChatTemplate(tokenizer, settings.template)


def check_template(settings: ChatSettings) -> str:
    """Makes sure before the work that conversations can be rendered; returns the text of the template."""
    tokenizer, template = open_template(settings)
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    ids, trained = template.training(asked)
    template.require_tokens()
    if ids[np.flatnonzero(trained)[-1]] not in tokenizer.special_ids:
        warn(
            f"{template.source}: the chat template ends answers with no special token, so the model does not learn to stop."
        )
    return template.text
