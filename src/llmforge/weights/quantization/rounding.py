"""A matrix in 8 or 4 bits, rounded by bitsandbytes.

int8: a row is divided by its scale, a 127th of the largest magnitude in it (LLM.int8(), arXiv 2208.07339). int4: NF4, whose
16 values are quantiles of the normal distribution, times the scale of a block, whose largest magnitude it is; scales are
8-bit numbers in blocks of 256 (QLoRA, arXiv 2305.14314). Blocks have 32 weights, where transformers asks for 64.
"""

import json
import math
from typing import TYPE_CHECKING

from llmforge.weights.quantization import Kind

if TYPE_CHECKING:
    import torch

BLOCK = 32  # bitsandbytes has kernels for 32, 64, ... 4096
NESTED = 256  # scales whose own scale is one
STATE_BYTES = (
    256  # of the JSON of a matrix, which is padded, so that sizes are known before anything is rounded
)
Layout = dict[str, tuple[str, tuple[int, ...]]]


def layout(kind: Kind, outputs: int, inputs: int) -> Layout:
    """(safetensors dtype, shape) of each tensor that stands for a matrix (outputs, inputs), by the ending of its name."""
    if kind == "int8":
        return {"weight": ("I8", (outputs, inputs)), "SCB": ("F32", (outputs,)), "weight_format": ("U8", ())}
    blocks = outputs * inputs // BLOCK
    return {
        "weight": ("U8", (outputs * inputs // 2, 1)),
        "weight.absmax": ("U8", (blocks,)),
        "weight.quant_map": ("F32", (16,)),
        "weight.nested_absmax": ("F32", (math.ceil(blocks / NESTED),)),
        "weight.nested_quant_map": ("F32", (256,)),
        "weight.quant_state.bitsandbytes__nf4": ("U8", (STATE_BYTES,)),
    }


def rounded(kind: Kind, matrix: "torch.Tensor", dtype: str) -> "dict[str, torch.Tensor]":
    """The tensors of `layout` for `matrix` float32, of a multiple of 32 inputs where it is int4. `dtype` is what they are
    computed in.
    """
    import torch
    from bitsandbytes.functional import quantize_4bit

    if kind == "int8":
        largest = matrix.abs().amax(dim=1).clamp(min=1e-30)
        codes = (matrix * (127 / largest[:, None])).round().to(torch.int8)
        return {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    codes, state = quantize_4bit(matrix, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
    told = {**state.as_dict(), "dtype": dtype}
    parts = {f"weight.{name}": told.pop(name) for name, part in list(told.items()) if torch.is_tensor(part)}
    text = json.dumps(told).encode().ljust(STATE_BYTES)
    parts["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
    return {"weight": codes, **parts}
