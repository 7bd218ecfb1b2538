"""Stored floating-point formats and float32, by numpy alone (numpy has no bfloat16)."""

from typing import Any

import numpy as np
import numpy.typing as npt

from llmforge.errors import UserError

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

# What an element looks like to numpy; bfloat16 is handled as its bits.
STORAGE: dict[str, npt.DTypeLike] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
}
NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def storage_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype that holds the safetensors dtype `dtype`; `UserError` for one that arithmetic is not
    done in.
    """
    if dtype not in STORAGE:
        raise UserError(
            f"weights of dtype {dtype} cannot be computed with; convert the model to bfloat16 first."
        )
    return np.dtype(STORAGE[dtype]).newbyteorder("<")


def to_float32(stored: Array, dtype: str) -> Float32:
    """`stored` (in `storage_dtype(dtype)`) as a new float32 array of the same shape."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32)


def from_float32(values: Float32, dtype: str) -> Array:
    """`values` in `storage_dtype(dtype)`, rounded to nearest, ties to even; NaN stays NaN, too large becomes
    inf.
    """
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return values.astype(storage_dtype(dtype))
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    with np.errstate(over="ignore"):
        rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    # Rounding would carry the mantissa of some NaNs into infinity, or past it.
    return np.where(np.isnan(values), ((bits >> np.uint32(16)) | np.uint32(0x40)).astype(np.uint16), rounded)
