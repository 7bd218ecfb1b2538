"""Attention inside the documents of packed rows, so that a document's loss does not depend on its row-mates.

Each function has transformers' attention interface and is chosen through `attn_implementation`. Where
the documents lie travels as the keyword `documents`, which every decoder layer hands on.
"""

from functools import cached_property, lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import functional

from llmforge.errors import UserError

SDPA, FLASH, VARLEN, FLEX = "llmforge_sdpa", "llmforge_flash", "llmforge_varlen", "llmforge_flex"
NAMES = {"sdpa": SDPA, "flash": FLASH, "varlen": VARLEN, "flex": FLEX}


class Documents:
    """The lengths of the documents of each row of a micro-batch, and what the kernels want to know of them.

    An object and no tuple, so that compiled layers hand it on without looking inside.
    """

    def __init__(self, lengths: tuple[tuple[int, ...], ...], device: torch.device) -> None:
        self.sizes = [n for row in lengths for n in row]
        self.rows, self.device = lengths, device

    @cached_property
    def longest(self) -> int:
        return max(self.sizes)

    @cached_property
    def bounds(self) -> torch.Tensor:
        """int32 (documents + 1,): where documents begin in the rows laid end to end."""
        return functional.pad(torch.tensor(self.sizes, device=self.device).cumsum(0), (1, 0)).to(torch.int32)

    @cached_property
    def block_mask(self) -> Any:
        """The mask of flex attention: causal, and inside a document."""
        from torch.nn.attention.flex_attention import create_block_mask

        length = sum(self.rows[0])
        numbers = torch.stack(
            [
                torch.repeat_interleave(
                    torch.arange(len(row), device=self.device), torch.tensor(row, device=self.device)
                )
                for row in self.rows
            ]
        )

        def visible(row: Any, _head: Any, query: Any, key: Any) -> Any:
            return (query >= key) & (numbers[row, query] == numbers[row, key])

        return create_block_mask(visible, len(self.rows), None, length, length, device=str(self.device))


def register() -> None:
    """Makes the functions of this file known to transformers."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for name, function in ((SDPA, by_sdpa), (FLASH, by_flash), (VARLEN, by_varlen), (FLEX, by_flex)):
        ALL_ATTENTION_FUNCTIONS[name] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]


def available(device: torch.device, dtype: torch.dtype) -> list[str]:
    """The words of `--attention` that this machine can run, the best first."""
    if device.type != "cuda":
        return ["sdpa"]  # flex attention has no gradient on a CPU
    half = dtype in (torch.bfloat16, torch.float16)
    flash = ["flash"] if half and find_spec("flash_attn") else []
    varlen = ["varlen"] if half and find_spec("torch.nn.attention.varlen") else []
    return [*flash, *varlen, "flex", "sdpa"]


def choose(device: torch.device, dtype: torch.dtype, wanted: str = "auto") -> str:
    """The word of `--attention` to run; a `UserError` where the machine cannot run the one that is
    asked for.
    """
    can = available(device, dtype)
    if wanted == "auto":
        return can[0]
    if wanted not in can:
        raise UserError(
            f"--attention {wanted} does not run here ({device.type}, {dtype}); use one of {', '.join(can)}."
        )
    return wanted


def by_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    documents: Documents | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention, one call of PyTorch's kernel per document: no mask, and no work across documents.

    `query` (rows, heads, length, width), `key` and `value` (rows, key-value heads, length, width). Returns
    (rows, length, heads, width).
    """
    rows, heads, length, _width = query.shape
    sizes = documents.sizes if documents else [length] * rows
    # Tokens in one long line, cut with `split`: its gradient is one concatenation, that of slices a
    # copy of all each.
    states = [one_line(tensor).split_with_sizes(sizes) for tensor in (query, key, value)]
    repeats = heads // key.shape[1]
    outputs = []
    for q, k, v in zip(*states, strict=True):
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
        attended = functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling
        )
        outputs.append(attended[0].transpose(0, 1))
    return torch.cat(outputs).view(rows, length, heads, -1), None


def by_flash(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    documents: Documents | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The same by flash-attn's kernel for lines of several lengths (arXiv 2307.08691)."""
    from flash_attn import flash_attn_varlen_func

    rows, heads, length, _width = query.shape
    documents = documents or Documents(((length,),) * rows, query.device)
    bounds, longest = documents.bounds, documents.longest
    q, k, v = one_line(query), one_line(key), one_line(value)
    attended = flash_attn_varlen_func(
        *(q, k, v, bounds, bounds, longest, longest), dropout_p=dropout, softmax_scale=scaling, causal=True
    )
    return attended.view(rows, length, heads, -1), None


def by_varlen(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    documents: Documents | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The same by PyTorch's own kernel for lines of several lengths; it has one scale and as many keys
    as queries.
    """
    from torch.nn.attention.varlen import varlen_attn

    rows, heads, length, width = query.shape
    documents = documents or Documents(((length,),) * rows, query.device)
    bounds, longest = documents.bounds, documents.longest
    q, k, v = one_line(query), one_line(key), one_line(value)
    if heads != key.shape[1]:
        k, v = (tensor.repeat_interleave(heads // key.shape[1], dim=1) for tensor in (k, v))
    if scaling is not None:
        q = q * (scaling * width**0.5)
    attended: Any = varlen_attn(q, k, v, bounds, bounds, longest, longest, **causal_window())
    return attended.view(rows, length, heads, -1), None


def by_flex(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    documents: Documents | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The same by flex attention, whose mask skips blocks that no document reaches (arXiv 2412.05496)."""
    rows, heads, length, _width = query.shape
    documents = documents or Documents(((length,),) * rows, query.device)
    attended = flex_kernel(query.device.type)(
        query, key, value, block_mask=documents.block_mask, scale=scaling, enable_gqa=heads != key.shape[1]
    )
    return attended.transpose(1, 2), None


@lru_cache
def flex_kernel(device_type: str) -> Any:
    """Flex attention, compiled on a GPU; on a CPU its compiled form has no gradient, so the plain one
    runs.
    """
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if device_type == "cuda" else flex_attention


@lru_cache
def causal_window() -> dict[str, Any]:
    """How this version of PyTorch's `varlen_attn` is told to be causal."""
    from inspect import signature

    from torch.nn.attention.varlen import varlen_attn

    return (
        {"window_size": (-1, 0)}
        if "window_size" in signature(varlen_attn).parameters
        else {"is_causal": True}
    )


def one_line(states: torch.Tensor) -> torch.Tensor:
    """(rows, heads, length, width) as (rows * length, heads, width)."""
    return states.transpose(1, 2).flatten(0, 1)
