"""Curves as a small SVG: compute on a logarithmic axis."""

import math
from collections.abc import Mapping, Sequence
from html import escape

COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7f7f7f",
    "#000000",
)  # Okabe and Ito
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 380, 60, 290, 14, 46


def svg(curves: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str) -> str:
    """An SVG of named curves of (x, y), x above 0; the axes are called `across` and `up`."""
    points = [point for curve in curves.values() for point in curve]
    low_x, high_x = (math.log10(choose(x for x, _ in points)) for choose in (min, max))
    low_y, high_y = (choose(y for _, y in points) for choose in (min, max))
    span_x, span_y = max(high_x - low_x, 1e-9), max(high_y - low_y, 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (math.log10(x) - low_x) / span_x * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - low_y) / span_y * (HEIGHT - TOP - BOTTOM),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for number in range(5):
        y = low_y + span_y * number / 4
        at = place(10**low_x, y)[1]
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:.2f}</text>')
        x = 10 ** (low_x + span_x * number / 4)
        at = place(x, low_y)[0]
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:.1e}</text>')
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(across)}</text>')
    parts.append(
        f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(up)}</text>'
    )
    for number, (name, curve) in enumerate(curves.items()):
        color = COLORS[number % len(COLORS)]
        dashes = ' stroke-dasharray="6 3"' if number >= len(COLORS) else ""
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"{dashes}/>')
        at = TOP + 14 + 18 * number
        parts.append(
            f'<path d="M{WIDTH - RIGHT + 10} {at - 4}h18" stroke="{color}" stroke-width="2"{dashes}/>'
        )
        parts.append(f'<text x="{WIDTH - RIGHT + 34}" y="{at}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>\n"])
