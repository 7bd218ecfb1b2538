"""Weights of 8 and 4 bits, in the formats of bitsandbytes: computed on CPUs and GPUs, read by transformers and vLLM.

rounding.py   a matrix in 8 or 4 bits
plan.py       which matrices of a model are rounded, and what its configuration says of it
load.py       a model whose weights are rounded while they are read
"""

from typing import Literal

Kind = Literal["int8", "int4"]
KINDS: tuple[Kind, ...] = ("int8", "int4")

__all__ = ["KINDS", "Kind"]
