"""Conversations to ids: rendered by a chat template, the assistant's answers trained."""

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmforge.console import warn
from llmforge.corpus import Block, Rejection, Spans
from llmforge.dataset.encoding import Encoded, Encoder
from llmforge.errors import UserError
from llmforge.tokenizer import Tokenizer, load
from llmforge.tokenizer.chat_template import ChatTemplate


@dataclass(frozen=True)
class ChatSettings:
    """How conversations become ids: by `tokenizer` (its directory and scheme) and `template` (a file, a name, or None for
    the tokenizer's own); `last`: the last answer alone is trained.
    """

    tokenizer: Path
    scheme: str | None
    template: Path | None
    last: bool


@dataclass(frozen=True)
class _Rendered:
    """The ids (n,) int32 of a conversation, and which of them are trained (n,) bool."""

    ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]


class ChatEncoder:
    """Encodes blocks of which some documents are conversations; `encoder` encodes the others."""

    def __init__(self, settings: ChatSettings, encoder: Encoder) -> None:
        self.settings, self.encoder = settings, encoder
        _, self.template = open_template(settings)
        self.rendered: dict[int, _Rendered] = {}

    def render(self, block: Block) -> Block:
        """`block` without the conversations that the template cannot render, which are `rejected` then."""
        self.rendered = {}
        if block.conversations is None:
            return block
        refused: list[Rejection] = []
        wanted = np.ones(len(block), np.bool_)
        for number, conversation in enumerate(block.conversations.to_pylist()):
            if conversation is None:
                continue
            line = int(block.line[number])
            try:
                self.rendered[line] = self._render(conversation)
            except UserError as error:
                refused.append(Rejection(line, str(error).rstrip(".")))
                wanted[number] = False
        return replace(block.take(np.flatnonzero(wanted)), rejected=[*block.rejected, *refused])

    def _render(self, conversation: str) -> _Rendered:
        value = json.loads(conversation)
        ids, trained = self.template.training(value["messages"], value.get("tools"), self.settings.last)
        if not trained[1:].any():
            raise UserError("the chat template renders no answer")
        return _Rendered(ids, trained)

    def encode(self, block: Block) -> Encoded:
        """The ids of what `render` gave last, in any order."""
        own = [self.rendered.get(line) for line in block.line.tolist()]
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
