"""The floor of a training step: operations and bytes of each of its parts, and what a device needs for them at least.

A part takes the longer of operations / peak and bytes / bandwidth (Williams, Waterman and Patterson, 2009). Counted is what
llmforge's code asks of the device: elementwise chains outside of the head once in and once out, as a compiler fuses them;
inside of it, where nothing is fused, operation by operation.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmforge.backends.common.devices import Device

if TYPE_CHECKING:
    from llmforge.train.shape import Shape

FLOAT32 = 4


@dataclass(frozen=True)
class Part:
    """Of one optimizer step: floating-point operations, and bytes read and written in the device's memory."""

    name: str
    flops: float
    bytes: float

    def seconds(self, device: Device, precision: str) -> float:
        """The least that `device` needs."""
        return max(self.flops / device.peak(precision), self.bytes / device.bandwidth)


def step_parts(
    shape: "Shape",
    tokens: int,
    micro_batches: int,
    visible: float,
    *,
    low: int,
    chunk: int,
    recomputed: bool = False,
) -> list[Part]:
    """The parts of a step of `micro_batches` of `tokens` tokens each, all weights trained by AdamW.

    `visible` keys a token sees; products have `low` bytes a number; the head takes `chunk` tokens at a time; `recomputed`
    are the layers' activations where they are not kept.
    """
    weights, head = sum(shape.active_per_layer), shape.vocabulary * shape.width
    queries, keys = shape.heads * shape.head_width, shape.heads * shape.value_width
    passes = 4 if recomputed else 3  # forward, gradients of inputs and of weights, and forward once more
    forwards = passes - 2
    # Each product reads and writes its inputs and outputs once a pass; keys and values counted as for every head.
    through = 2 * (shape.width + queries) + 2 * (shape.width + keys) + 3 * (shape.width + shape.intermediate)
    products = Part(
        "products of the layers",
        passes * 2 * weights * tokens,
        low * (passes * weights + passes * shape.layers * through * tokens) + 3 * FLOAT32 * weights,
    )
    scores = 2 * shape.layers * (queries + keys) * visible * tokens
    attention = Part(
        "attention",
        scores * (forwards + 2.5),  # its backward pass computes the scores again
        low * shape.layers * tokens * (2 * (queries + keys) * forwards + 4 * (queries + keys)),
    )
    elementwise = Part(
        "norms, rotations, gates",
        0.0,
        shape.layers * tokens * _elementwise(shape, low, forwards),
    )
    chunks = -(-tokens // chunk)
    # The matrix forward and backward; its gradient's product out and in, and the float32 sum in and out.
    matrix = low + low + 2 * low + 2 * FLOAT32
    # Product out; to float32; largest; minus it; exp; sum; divided; to the products' dtype, which two products read.
    logit = low + (low + 4) + 4 + 8 + 8 + 4 + 8 + (4 + low) + 2 * low
    loss = Part(
        "head and loss", 3 * 2 * head * tokens, chunks * matrix * head + logit * shape.vocabulary * tokens
    )
    lookup = Part("embedding", 0.0, 3 * FLOAT32 * (head + 2 * shape.width * tokens))
    every = [products, attention, elementwise, loss, lookup]
    parts = [Part(p.name, p.flops * micro_batches, p.bytes * micro_batches) for p in every]
    cast = low + FLOAT32 if low < FLOAT32 else 0
    parts.append(Part("weights cast", 0.0, cast * (shape.parameters - head)))
    parts.append(Part("gradient norm and clipping", 0.0, 3 * FLOAT32 * shape.parameters))
    parts.append(Part("AdamW", 0.0, 7 * FLOAT32 * shape.parameters))
    return parts


def _elementwise(shape: "Shape", low: int, forwards: int) -> float:
    """Bytes of a token in a layer: two norms and two sums with the float32 stream, rotations of queries and keys, and the
    gate with what it multiplies.
    """
    stream, inner = shape.width, shape.intermediate
    rotated = 2 * shape.heads * shape.head_width
    forward = 2 * (FLOAT32 + low) * stream + 2 * (2 * FLOAT32 + low) * stream
    forward += 2 * low * rotated + 3 * low * inner
    backward = 2 * (2 * FLOAT32 + low) * stream + 2 * 2 * FLOAT32 * stream
    backward += 2 * low * rotated + 5 * low * inner
    return forwards * forward + backward


def floor_seconds(parts: list[Part], device: Device, precision: str) -> float:
    """The least that a step takes on `device` where no two parts overlap."""
    return sum(part.seconds(device, precision) for part in parts)
