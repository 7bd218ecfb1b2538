"""A matrix in 8 or 4 bits, as bitsandbytes stores and computes it.

int8: a row is divided by its scale, a 127th of the largest magnitude in it (LLM.int8(), arXiv 2208.07339). int4: NF4, whose
16 values are quantiles of the normal distribution (QLoRA, arXiv 2305.14314, appendix E), times the scale of a block of 32
weights. bitsandbytes itself takes blocks of 64 and their largest magnitude as the scale; here the scale is fitted by least
squares, in turns with the values that the weights are rounded to.
"""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BLOCK = 32  # bitsandbytes has kernels for 32, 64, ... 4096
ROUNDS = 3
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
)
SMALLEST = 1e-30  # the scale of weights that are all zero


def int8(matrix: "torch.Tensor") -> "dict[str, torch.Tensor]":
    """The tensors of `matrix` (outputs, inputs) float32 by the endings of their names: `weight` int8 of the same shape, `SCB`
    the largest magnitude of each row, and `weight_format` (0: row by row).
    """
    import torch

    largest = matrix.abs().amax(dim=1).clamp(min=SMALLEST)
    codes = (matrix * (127 / largest[:, None])).round().to(torch.int8)
    return {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}


def int4(matrix: "torch.Tensor", dtype: str) -> "dict[str, torch.Tensor]":
    """The tensors of `matrix` (outputs, inputs) float32, of a multiple of 32 inputs, by the endings of their names: `weight`
    uint8 (outputs * inputs / 2, 1) with two codes a byte, the first one above, and what they mean. `dtype` is what they
    are computed in.
    """
    import torch

    values = torch.tensor(NF4, device=matrix.device)
    middles = (values[1:] + values[:-1]) / 2
    blocks = matrix.reshape(-1, BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST)
    for _ in range(ROUNDS):
        near = values[torch.bucketize(blocks / scale, middles)]
        fitted = (blocks * near).sum(dim=1, keepdim=True) / near.square().sum(dim=1, keepdim=True)
        scale = torch.where(fitted > 0, fitted, scale)  # not where all are zero
    codes = torch.bucketize(blocks / scale, middles).to(torch.uint8).reshape(-1, 2)
    state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": dtype, "shape": list(matrix.shape)}
    return {
        "weight": (codes[:, :1] << 4) | codes[:, 1:],
        "weight.absmax": scale[:, 0].contiguous(),
        "weight.quant_map": values,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(
            list(json.dumps(state).encode()), dtype=torch.uint8
        ),
    }
