"""Attention inside the documents of packed rows, so that a document's loss does not depend on the other documents of its row.

Each kernel has transformers' attention interface (`_as_interface`) and is chosen through `attn_implementation`. Where
the documents lie travels as the keyword `documents`, which decoder layers hand on. What a model's layer asks of
attention arrives as keywords too: `Terms` names those that are computed, and others that say something are refused,
so that nothing is ignored silently. Masks are not looked at: in a causal model they say what `documents` and
the window say. That this holds, and that a layer hands all of it on, is compared before each training
(`llmforge.backends.common.packing`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import functional

from llmforge.backends.common.documents import Documents, one_line
from llmforge.errors import UserError

# None holds "sdpa" or "flash": transformers takes these for its own, and asks the class whether it knows them.
SDPA, FLASH, VARLEN, FLEX = "llmforge_documents", "llmforge_fa", "llmforge_varlen", "llmforge_flex"
FLASH3 = "llmforge_fa3"
NAMES = {"sdpa": SDPA, "flash": FLASH, "flash3": FLASH3, "varlen": VARLEN, "flex": FLEX}
HOPPER = 9  # the major number of the only compute capability that flash-attn 3 is for
BLOCK = 512  # queries at a time, at least, where a window is shorter than a document
# Keywords that layers hand on and that do not change what attention computes.
SILENT = {
    *("position_ids", "position_embeddings", "cache_position", "past_key_value", "past_key_values"),
    *("output_router_logits", "num_items_in_batch", "deterministic", "output_hidden_states", "return_dict"),
    *("use_cache", "kwargs"),
}


@dataclass(frozen=True)
class Terms:
    """What a layer asks of its attention besides causality.

    `window`: keys that a query sees, itself included. `softcap`: scores become softcap * tanh(scores / softcap).
    `sinks` (heads,): a score per head that takes its share of the softmax and has no value (GPT-OSS). `dropout` of the
    softmax. `scaling`: what scores are multiplied by, 1 / sqrt(width) if None.
    """

    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    dropout: float = 0.0
    scaling: float | None = None

    @classmethod
    def of(
        cls,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        dropout: float,
        scaling: float | None,
        options: Mapping[str, Any],
    ) -> "Terms":
        """The terms among the keywords `options` of an attention function; a `UserError` for what is none."""
        rest = {name: value for name, value in options.items() if name not in SILENT}
        # A layer that is not causal says so in the keyword, or in the attribute that transformers' own kernels read.
        causal = rest.pop("is_causal", None)
        if causal is None:
            causal = getattr(module, "is_causal", True)
        window, softcap, sinks = (rest.pop(name, None) for name in ("sliding_window", "softcap", "s_aux"))
        terms = cls(window, softcap, sinks, dropout, scaling)
        asked = [name for name, value in rest.items() if value is not None and value is not False]
        if causal is False:
            asked.append("is_causal=False")
        if query.shape[2] != key.shape[2]:
            asked.append("other keys than queries")
        if asked:
            raise UserError(
                f"{type(module).__name__} needs attention with {', '.join(asked)}, which llmforge's kernels "
                "do not compute."
            )
        return terms

    @property
    def need_scores(self) -> bool:
        """Whether the scores themselves are changed, which PyTorch's kernel does not let one do."""
        return self.softcap is not None or self.sinks is not None


# (query, key, value, documents, terms) to (rows, length, heads, width); None for what it cannot compute.
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Documents, Terms], torch.Tensor | None]


def register() -> None:
    """Makes the functions of this file known to transformers."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    functions = {SDPA: by_sdpa, FLASH: by_flash, FLASH3: by_flash3, VARLEN: by_varlen, FLEX: by_flex}
    for name, function in functions.items():
        ALL_ATTENTION_FUNCTIONS[name] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]


def available(device: torch.device, dtype: torch.dtype) -> list[str]:
    """The words of `--attention` that this machine can run, the best first."""
    if device.type != "cuda":
        return ["sdpa"]  # flex attention has no gradient on a CPU
    half = dtype in (torch.bfloat16, torch.float16)
    flash = ["flash"] if half and find_spec("flash_attn") else []
    varlen = ["varlen"] if half and find_spec("torch.nn.attention.varlen") else []
    hopper = half and torch.cuda.get_device_capability(device)[0] == HOPPER
    flash3 = ["flash3"] if hopper and (find_spec("flash_attn_interface") or find_spec("kernels")) else []
    return [*flash, *varlen, "flex", "sdpa", *flash3]  # last: auto takes what was measured


def choose(device: torch.device, dtype: torch.dtype, wanted: str = "auto") -> str:
    """The word of `--attention` to run; a `UserError` where the machine cannot run the one that is
    asked for.
    """
    can = available(device, dtype)
    if wanted == "auto":
        return can[0]
    if wanted not in can:
        raise UserError(
            f"--attention {wanted} is not available here ({device.type}, {dtype}); use one of {', '.join(can)}."
        )
    return wanted


def _as_interface(compute: Kernel) -> Callable[..., tuple[torch.Tensor, None]]:
    """`compute` as an attention function of transformers; `sdpa` computes what it has no way for."""

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        documents: Documents | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        terms = Terms.of(module, query, key, dropout, scaling, options)
        rows, _heads, length, _width = query.shape
        documents = documents or Documents(((length,),) * rows, query.device)
        attended = compute(query, key, value, documents, terms)
        if attended is None:
            attended = sdpa(query, key, value, documents, terms)
        return attended, None

    return attend


def sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Documents, terms: Terms
) -> torch.Tensor:
    """Causal attention, one call of PyTorch's kernel per document: no mask, and no work across documents.

    `query` (rows, heads, length, width), `key` and `value` (rows, key-value heads, length, width; values may have
    another). Returns (rows, length, heads, width), as the others do. All `Terms` are computed: a window in blocks of queries, so that
    work grows with it and not with the document; soft caps and sinks on the scores themselves, which are in memory
    then, as in transformers' `eager`.
    """
    rows, heads, length, _width = query.shape
    # Tokens in one long line, cut with `split`: its gradient is one concatenation, that of slices a
    # copy of all each.
    states = [one_line(tensor).split_with_sizes(documents.sizes) for tensor in (query, key, value)]
    repeats = heads // key.shape[1]
    outputs = []
    for q, k, v in zip(*states, strict=True):
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
        outputs.append(_one_document(q, k, v, terms)[0].transpose(0, 1))
    return torch.cat(outputs).view(rows, length, heads, -1)


def _one_document(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, terms: Terms) -> torch.Tensor:
    """(1, heads, n, width) of one document of n tokens."""
    length = q.shape[2]
    window = terms.window if terms.window is not None and terms.window < length else None
    if window is None and not terms.need_scores:
        return functional.scaled_dot_product_attention(
            q, k, v, dropout_p=terms.dropout, is_causal=True, scale=terms.scaling
        )
    reach = window or length
    block = length if window is None else max(window, BLOCK)
    outputs = []
    for begin in range(0, length, block):
        end, first = min(begin + block, length), max(0, begin - reach + 1)
        queries = torch.arange(begin, end, device=q.device)[:, None]
        keys = torch.arange(first, end, device=q.device)
        visible = (keys <= queries) & (queries - keys < reach)
        part = (q[:, :, begin:end], k[:, :, first:end], v[:, :, first:end])
        if terms.need_scores:
            outputs.append(_by_scores(*part, visible, terms))
        else:
            outputs.append(
                functional.scaled_dot_product_attention(
                    *part, attn_mask=visible, dropout_p=terms.dropout, scale=terms.scaling
                )
            )
    return torch.cat(outputs, dim=2)


def _by_scores(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: torch.Tensor,
    terms: Terms,
) -> torch.Tensor:
    """Attention written out; softmax in float32."""
    scale = q.shape[3] ** -0.5 if terms.scaling is None else terms.scaling
    scores: torch.Tensor = q @ k.transpose(2, 3) * scale
    if terms.softcap is not None:
        scores = torch.tanh(scores / terms.softcap) * terms.softcap
    scores = scores.float().masked_fill(~visible, -torch.inf)
    if terms.sinks is not None:
        sinks = terms.sinks.float().view(1, -1, 1, 1).expand(len(q), -1, q.shape[2], 1)
        scores = torch.cat([scores, sinks], dim=3)
    shares = scores.softmax(dim=3)[..., : k.shape[2]].to(v.dtype)
    return functional.dropout(shares, terms.dropout) @ v


def flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Documents, terms: Terms
) -> torch.Tensor | None:
    """The same by flash-attn's kernel for lines of several lengths (arXiv 2307.08691). It has no sinks, and values
    as wide as keys.
    """
    if terms.sinks is not None or key.shape[3] != value.shape[3]:
        return None
    from flash_attn import flash_attn_varlen_func

    rows, heads, length, _width = query.shape
    bounds, longest = documents.bounds, documents.longest
    q, k, v = one_line(query), one_line(key), one_line(value)
    attended: torch.Tensor = flash_attn_varlen_func(
        *(q, k, v, bounds, bounds, longest, longest),
        dropout_p=terms.dropout,
        softmax_scale=terms.scaling,
        causal=True,
        window_size=(-1, -1) if terms.window is None else (terms.window - 1, 0),
        softcap=terms.softcap or 0.0,
    )
    return attended.view(rows, length, heads, -1)


def flash3(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Documents, terms: Terms
) -> torch.Tensor | None:
    """The same by flash-attn 3 (arXiv 2407.08608), which has no dropout either."""
    if terms.sinks is not None or terms.dropout or key.shape[3] != value.shape[3]:
        return None
    rows, heads, length, _width = query.shape
    attended: Any = flash3_kernel()(
        *(one_line(query), one_line(key), one_line(value)),
        cu_seqlens_q=documents.bounds,
        cu_seqlens_k=documents.bounds,
        max_seqlen_q=documents.longest,
        max_seqlen_k=documents.longest,
        softmax_scale=terms.scaling,
        causal=True,
        window_size=(-1, -1) if terms.window is None else (terms.window - 1, 0),
        softcap=terms.softcap or 0.0,
    )
    # Some versions also return the logarithms of the softmax's denominators.
    made: torch.Tensor = attended[0] if isinstance(attended, tuple) else attended
    return made.view(rows, length, heads, -1)


def varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Documents, terms: Terms
) -> torch.Tensor | None:
    """The same by PyTorch's own kernel for lines of several lengths; it has one scale, and in some versions windows and
    fewer keys than queries.
    """
    options = varlen_options(terms.window)
    if terms.need_scores or options is None or terms.dropout or key.shape[3] != value.shape[3]:
        return None
    from torch.nn.attention.varlen import varlen_attn

    rows, heads, length, width = query.shape
    bounds, longest = documents.bounds, documents.longest
    q, k, v = one_line(query), one_line(key), one_line(value)
    if heads != key.shape[1] and "enable_gqa" not in options:
        k, v = (tensor.repeat_interleave(heads // key.shape[1], dim=1) for tensor in (k, v))
    if terms.scaling is not None:
        q = q * (terms.scaling * width**0.5)
    attended: Any = varlen_attn(q, k, v, bounds, bounds, longest, longest, **options)
    made: torch.Tensor = attended.view(rows, length, heads, -1)
    return made


def flex(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Documents, terms: Terms
) -> torch.Tensor | None:
    """The same by flex attention, whose mask skips blocks that no document reaches (arXiv 2412.05496). It has
    neither dropout nor sinks.
    """
    if terms.sinks is not None or terms.dropout or key.shape[3] != value.shape[3]:
        return None
    cap = terms.softcap or 0.0

    def capped(score: Any, _row: Any, _head: Any, _query: Any, _key: Any) -> Any:
        return torch.tanh(score / cap) * cap

    attended = flex_kernel(query.device.type)(
        *(query, key, value),
        score_mod=capped if cap else None,
        block_mask=documents.block_mask(terms.window),
        scale=terms.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    made: torch.Tensor = attended.transpose(1, 2)
    return made


by_sdpa, by_flash, by_flash3, by_varlen, by_flex = map(_as_interface, (sdpa, flash, flash3, varlen, flex))


@lru_cache
def flash3_kernel() -> Any:
    """The function of the installed flash-attn 3; else of the build of it that `kernels` gets from the Hub."""
    if find_spec("flash_attn_interface"):
        from flash_attn_interface import flash_attn_varlen_func

        return flash_attn_varlen_func
    from kernels import get_kernel

    try:
        return get_kernel("kernels-community/flash-attn3", version=1).flash_attn_varlen_func
    except Exception as error:  # of HTTP, of the Hub, of a build for another torch
        why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"--attention flash3: kernels cannot load kernels-community/flash-attn3 ({why}); use another --attention."
        ) from None


@lru_cache
def flex_kernel(device_type: str) -> Any:
    """Flex attention, compiled on a GPU; on a CPU its compiled form has no gradient, so the plain one
    runs.
    """
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if device_type == "cuda" else flex_attention


@lru_cache
def varlen_options(window: int | None) -> dict[str, Any] | None:
    """How this version of PyTorch's `varlen_attn` is told to be causal, with a window, and that keys may be fewer than
    queries; None where it has no windows.
    """
    from inspect import signature

    from torch.nn.attention.varlen import varlen_attn

    has = signature(varlen_attn).parameters
    grouped = {"enable_gqa": True} if "enable_gqa" in has else {}
    if "window_size" in has:
        return {"window_size": (-1 if window is None else window - 1, 0), **grouped}
    return {"is_causal": True, **grouped} if window is None else None
