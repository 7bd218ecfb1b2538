"""What new tokens are worth by their number: `learn-pieces --curve`.

A new token shortens the texts, so fewer tokens go through the layers; its row in the head costs every token. Where the
products of one forward pass cost least per character, more tokens no longer pay (arXiv 2407.13623 asks the same of
training from scratch).
"""

from collections.abc import Sequence
from dataclasses import replace

from llmforge.train.shape import Shape

MANTISSAS = (1, 2, 5)
HEADER = ("new tokens", "tokens/char", "tokens", "FLOPs/char", "head", "embeddings")
WITHOUT_MODEL = 3  # columns


def sizes(most: int) -> list[int]:
    """0, then 100, 200, 500, 1,000, ... below `most`, then `most`."""
    steps = [m * 10**e for e in range(2, len(str(most)) + 1) for m in MANTISSAS]
    return [0, *(size for size in steps if size < most), most]


def rows(characters: int, curve: Sequence[Sequence[int]], shape: Shape | None) -> list[list[str]]:
    """Table rows below HEADER: `curve` are (new tokens, tokens of the texts) in rising order from 0 on, of `characters`.

    For each of `sizes`, the last point of the curve that is not above it. FLOPs are those of the matrix products of one
    forward pass, without attention to other tokens, relative to no new tokens.
    """
    found: list[list[str]] = []
    first = curve[0][1]
    cost_before = None
    for size in sizes(curve[-1][0]):
        number, tokens = next(point for point in reversed(curve) if point[0] <= size)
        row = [f"{number:,}", f"{tokens / characters:.3f}", f"{tokens / first:.3f} x"]
        if shape:
            grown = replace(shape, vocabulary=shape.vocabulary + number)
            head = grown.vocabulary * grown.width
            weights = sum(grown.active_per_layer) + head
            cost = weights * tokens
            cost_before = cost_before or cost
            row += [
                f"{cost / cost_before:.3f} x",
                f"{head / weights:.0%}",
                f"{grown.embedding_parameters / 1e6:,.1f} M",
            ]
        if not found or row[0] != found[-1][0]:
            found.append(row)
    return found
