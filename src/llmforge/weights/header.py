"""The header of a safetensors file: https://github.com/huggingface/safetensors#format, held to the letter.

What the format forbids is refused here, as the safetensors library does: two tensors on the same bytes, bytes that
belong to no tensor, a name that stands twice, a size that does not follow from the shape. Such a file is damaged, or
means different weights to different readers.
"""

import json
import math
from pathlib import Path
from typing import Any

from llmforge.errors import UserError
from llmforge.weights.floats import BYTES

MAX_BYTES = 100_000_000  # of a header, as in the safetensors library
METADATA = "__metadata__"
FIELDS = ("dtype", "shape", "data_offsets")
# Formats of quantized weights, whose numbers mean nothing without scales that lie beside them.
QUANTIZED = ("F8_", "F6_", "F4")


def read(path: Path) -> list[tuple[str, str, tuple[int, ...], int, int]]:
    """(name, dtype, shape, first byte in the file, bytes) of each tensor of `path`, in file order.

    Raises `UserError`, which names the file and the tensor, for anything else than a whole safetensors file in one of
    the dtypes of `BYTES`.
    """

    def damaged(what: str) -> UserError:
        return UserError(f"{path} is damaged ({what}); copy or download it again.")

    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_BYTES):
                raise damaged(f"it has {size:,} bytes, too few for its header")
            text = file.read(length)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    repeated: list[str] = []

    def no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = dict(pairs)
        if len(names) != len(pairs):
            repeated.extend(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        return names

    try:
        header = json.loads(text, object_pairs_hook=no_name_twice)
    except (ValueError, RecursionError) as error:
        raise damaged("its header is not that of a safetensors file") from error
    if not isinstance(header, dict) or not text.startswith(b"{"):
        raise damaged("its header is not that of a safetensors file")
    if repeated:
        raise damaged(f"its header has {_shown(repeated[0])} twice")
    header.pop(METADATA, None)
    found = []
    for name, entry in header.items():
        if not _is_entry(entry):
            raise damaged(f"its header does not say where {_shown(name)} lies")
        dtype, shape, (start, end) = (entry[field] for field in FIELDS)
        if dtype not in BYTES:
            raise UserError(
                f"{path}: {_shown(name)} has the dtype {_shown(dtype)}, "
                + (
                    "a quantized one; give the model in bfloat16, float16 or float32."
                    if dtype.startswith(QUANTIZED)
                    else "which is not supported; convert the model to bfloat16 first."
                )
            )
        if end - start != math.prod(shape) * BYTES[dtype]:
            raise damaged(f"the size of {_shown(name)} does not follow from its shape")
        found.append((name, dtype, tuple(shape), 8 + length + start, end - start))
    found.sort(key=lambda tensor: tensor[3:])
    position = 8 + length
    for name, _, _, start, count in found:
        if start != position:
            where = (
                "overlaps the tensor before it" if start < position else "does not follow the one before it"
            )
            raise damaged(f"{_shown(name)} {where}")
        position += count
    if position != size:
        raise damaged(f"it has {size:,} bytes and should have {position:,}")
    return found


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or not all(field in entry for field in FIELDS):
        return False
    offsets, shape = entry["data_offsets"], entry["shape"]
    return (
        isinstance(entry["dtype"], str)
        and isinstance(shape, list)
        and isinstance(offsets, list)
        and len(offsets) == 2
        and all(type(number) is int and 0 <= number < 1 << 63 for number in (*shape, *offsets))
        and offsets[0] <= offsets[1]
    )


def _shown(name: str) -> str:
    """`name` for a sentence: whatever a file calls its tensors, on one line and not longer than it."""
    return name if name.isprintable() and len(name) <= 100 else repr(name[:100])
