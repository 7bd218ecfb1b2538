"""How packed rows are computed, and the forward pass that does it.

a kernel of llmforge       if it gives transformers' own values (`attention_check` compares)
one document at a time     by transformers' own attention, if it does not: ALiBi, chunks, older classes
one document per row       models with recurrent state, which no attention can separate
"""

from dataclasses import dataclass
from typing import Any

import torch

from llmforge.backends.backend import Backend
from llmforge.backends.common.documents import Documents
from llmforge.console import warn
from llmforge.errors import UserError
from llmforge.weights.modules import PLAIN, Logits


@dataclass(frozen=True)
class Way:
    """How packed rows are computed: with the `attn_implementation` `name`; `packed`: all documents of a row at once.

    `state` is the class of a layer with state between positions, `differs` that of the first layer that a kernel of
    llmforge does not compute as transformers does. `growing`: the position from which rotary frequencies of all
    positions change (`kind` of them). `logits`: what the head does with its products.
    """

    name: str
    packed: bool = True
    state: str | None = None
    differs: str | None = None
    growing: int | None = None
    kind: str | None = None
    logits: Logits = PLAIN


class PackedForward:
    """Takes the place of a base model's `forward`: the same, and `documents` tells where documents lie."""

    def __init__(self, forward: Any, way: Way) -> None:
        self.forward, self.way = forward, way

    def __call__(
        self,
        input_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        documents: Documents | None = None,
        **options: Any,
    ) -> Any:
        if documents is None or input_ids is None:
            return self.forward(input_ids=input_ids, position_ids=position_ids, **options)
        way = self.way
        if way.state and not documents.one_a_row:
            raise UserError(one_document_only(way.state))
        grown = way.growing is not None and documents.longest > way.growing
        if way.packed and not grown:
            return self.forward(
                input_ids=input_ids, position_ids=position_ids, documents=documents, **options
            )
        if documents.one_a_row and not grown:
            # Padding follows the document: no position of it sees the padding.
            return self.forward(input_ids=input_ids, **options)
        return self._one_by_one(input_ids, documents, options)

    def _one_by_one(self, input_ids: torch.Tensor, documents: Documents, options: dict[str, Any]) -> Any:
        pieces: list[torch.Tensor] = []
        output = None
        for row, sizes, padded in zip(input_ids, documents.rows, documents.padded, strict=True):
            parts = row.split(list(sizes))
            for number, part in enumerate(parts):
                if padded and number == len(parts) - 1 and pieces:
                    pieces.append(pieces[-1].new_zeros(1, len(part), pieces[-1].shape[2]))
                    continue
                output = self.forward(input_ids=part[None], **options)
                pieces.append(output.last_hidden_state)
        assert output is not None
        output.last_hidden_state = torch.cat(pieces, dim=1).view(*input_ids.shape, -1)
        return output


def one_document_only(layer: str) -> str:
    return (
        f"{layer} has a recurrent state, which carries over from one document of a row to the next; prepare the data with "
        "llmforge prepare-data --documents-per-row 1."
    )


def install(causal: Any, way: Way) -> None:
    """Makes the base model of `causal`, which was made with `way.name`, understand `documents`."""
    causal.base_model.forward = PackedForward(causal.base_model.forward, way)


def way_of(causal: Any) -> Way:
    """The way of a model that `load_model` or `empty_model` made."""
    way: Way = causal.base_model.forward.way
    return way


def check_rows(way: Way, backend: Backend, length: int, documents_per_row: int, *, tell: bool) -> None:
    """Refuses rows of `length` tokens with up to `documents_per_row` documents that `backend` cannot compute in `way`;
    and says, where it is to `tell`, what a user would not expect.
    """
    several = documents_per_row > 1
    if way.state and several:
        raise UserError(one_document_only(way.state))
    grows = way.growing is not None and length > way.growing
    if grows and (way.kind == "dynamic" or way.state):
        raise UserError(
            f"rows of {length} tokens are longer than the {way.growing} from which rotary positions of the kind "
            f"{way.kind} change for all tokens of a row, by what came before; prepare the data with --max-length "
            f"{way.growing}."
        )
    alone = several and not way.packed
    if (alone or grows) and not backend.calls_again:
        why = (
            f"rotary positions of the kind {way.kind} depend on the longest document beyond {way.growing} tokens"
            if grows
            else f"{way.differs} is not what llmforge's kernels compute"
        )
        raise UserError(
            f"{why}, so documents are computed one at a time, which --plugin {backend.name} cannot; use "
            + ("ddp or zero2." if grows else "ddp or zero2, or prepare the data with --documents-per-row 1.")
        )
    if tell and alone:
        warn(
            f"{way.differs} is not what llmforge's kernels compute, so transformers' own {way.name} attention computes "
            f"one document at a time: the same values, but slower, as a row is up to {documents_per_row} "
            "forward passes instead of one."
        )
