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
# Bytes of an element, of every dtype that weights may have.
BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL"), 1),
}
# The bits of infinity; those of NaN are larger.
INFINITY = {"F64": 0x7FF << 52, "F32": 0xFF << 23, "F16": 0x1F << 10, "BF16": 0xFF << 7}
NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def storage_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype that holds the safetensors dtype `dtype`; `UserError` for one that arithmetic is not
    done in.
    """
    if dtype not in STORAGE:
        raise UserError(f"weights of dtype {dtype} are not supported; convert the model to bfloat16 first.")
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


def all_finite(stored: Array, dtype: str) -> bool:
    """Whether `stored` (in `storage_dtype(dtype)`) holds neither NaN nor infinity.

    Looks at the bits: of positive numbers as signed integers and of negative ones as unsigned, the largest is a NaN or
    an infinity if there is one. Two passes at the speed of memory, and no temporary array.
    """
    if not stored.size:
        return True
    width, infinity = BYTES[dtype], INFINITY[dtype]
    sign = 1 << (8 * width - 1)
    return bool(
        stored.view(f"<i{width}").max() < infinity and stored.view(f"<u{width}").max() < (infinity | sign)
    )
