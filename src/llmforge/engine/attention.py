"""Attention inside the documents of packed rows, so that a document's loss does not depend on its row-mates.

The functions have transformers' attention interface and are chosen through `attn_implementation`. The lengths
of the documents travel as the keyword `document_lengths`, which every decoder layer hands on.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import functional

SDPA = "llmforge_sdpa"


def register() -> None:
    """Makes the functions of this file known to transformers."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS[SDPA] = sdpa_by_document


def choose(device: torch.device, dtype: torch.dtype, wanted: str = "auto") -> str:
    """The `attn_implementation` for `device` and the dtype that attention computes in."""
    return SDPA


def sdpa_by_document(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    document_lengths: tuple[tuple[int, ...], ...] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention, one call of PyTorch's kernel per document: no mask, and no work across documents.

    `query` (rows, heads, length, width), `key` and `value` (rows, key-value heads, length, width). Returns
    (rows, length, heads, width).
    """
    rows, heads, length, _width = query.shape
    sizes = [n for row in document_lengths or ((length,),) * rows for n in row]
    # Tokens in one long line, cut with `split`: its gradient is one concatenation, that of slices one copy of
    # all each.
    parts = [states.transpose(1, 2).flatten(0, 1).split_with_sizes(sizes) for states in (query, key, value)]
    repeats = heads // key.shape[1]
    outputs = []
    for q, k, v in zip(*parts, strict=True):
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        attended = functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            k.transpose(0, 1)[None],
            v.transpose(0, 1)[None],
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
        )
        outputs.append(attended[0].transpose(0, 1))
    return torch.cat(outputs).view(rows, length, heads, -1), None


def flash_attention_installed() -> bool:
    return find_spec("flash_attn") is not None
