"""Charts as SVG inside a page: no script, nothing from elsewhere."""

import math
from collections.abc import Sequence
from html import escape

from llmforge.console import printable
from llmforge.report.blocks import Bars, Curves, Points
from llmforge.report.numbers import short, ticks

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, LEGEND = 560, 240, 64, 8, 40, 260  # pixels
# Colors that people who see few of them tell apart (Okabe and Ito, jfly.uni-koeln.de/color); further ones are turned hues.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")
FEW = 40  # points of the longest line up to which each is marked
WIDE = 1000.0  # largest over smallest value from which the axis is logarithmic
LONGEST_NAME = 38
BAR, NAMES, GAP = 18, 260, 26


def curves(chart: Curves) -> str:
    """A chart of lines with axes and a legend; nothing where there is no point."""
    points = [point for line in chart.lines.values() for point in line]
    if not points:
        return ""
    values = [y for _, y in points]
    log = min(values) > 0 and max(values) / min(values) > WIDE
    y_low, y_high = _span([math.log10(y) for y in values] if log else values)
    x_low, x_high = _span([x for x, _ in points])

    def place(x: float, y: float) -> tuple[float, float]:
        y = math.log10(y) if log else y
        across = LEFT + WIDTH * ((x - x_low) / (x_high - x_low))
        return across, TOP + HEIGHT * (1 - (y - y_low) / (y_high - y_low))

    parts = [*_across(x_low, x_high, chart.x), *_up(y_low, y_high, log, chart.y)]
    for number, (name, line) in enumerate(chart.lines.items()):
        marked = max(map(len, chart.lines.values())) <= FEW
        parts.append(_line([place(*point) for point in line], line, name, _color(number), marked))
        parts.append(_key(number, name))
    height = max(TOP + HEIGHT + BOTTOM, 18 * len(chart.lines) + TOP)
    return _svg(chart.title, LEFT + WIDTH + LEGEND, height, parts)


def bars(chart: Bars) -> str:
    """Bars in groups."""
    longest = max((value for group in chart.groups.values() for value in group.values()), default=0) or 1
    names = list(dict.fromkeys(name for group in chart.groups.values() for name in group))
    parts, y = [], 0
    for label, group in chart.groups.items():
        if label:
            y += GAP
            parts.append(f'<text x="0" y="{y}" font-weight="bold">{_text(label)}</text>')
        y += 8
        for name, value in group.items():
            width, baseline = WIDTH * value / longest, y + BAR - 5
            parts.append(
                f'<text x="{NAMES - 8}" y="{baseline}" text-anchor="end">{_text(_cut(name))}</text>'
                f'<rect x="{NAMES}" y="{y}" width="{width:.1f}" height="{BAR - 3}" fill="{_color(names.index(name))}"/>'
                f'<text x="{NAMES + width + 6:.1f}" y="{baseline}">{value:,.{chart.digits}f}</text>'
            )
            y += BAR + 2
    return _svg(chart.title, NAMES + WIDTH + 90, y + 10, parts)


def _line(places: Points, points: Points, name: str, color: str, marked: bool) -> str:
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline points="{drawn}" fill="none" stroke="{color}" stroke-width="1.5"/>']
    if marked or len(places) == 1:
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"><title>{short(value)} at {short(at)}</title></circle>'
            for (x, y), (at, value) in zip(places, points, strict=True)
        ]
    return f"<g><title>{_text(name)}</title>{''.join(parts)}</g>"


def _key(number: int, name: str) -> str:
    y, x = TOP + 18 * number + 8, LEFT + WIDTH + 16
    return (
        f'<rect x="{x}" y="{y - 5}" width="12" height="3" fill="{_color(number)}"/>'
        f'<text x="{x + 18}" y="{y}"><title>{_text(name)}</title>{_text(_cut(name))}</text>'
    )


def _across(low: float, high: float, name: str) -> list[str]:
    bottom = TOP + HEIGHT
    parts = []
    for value in ticks(low, high, 7):
        x = LEFT + WIDTH * (value - low) / (high - low)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#eee"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{short(value)}</text>')
    middle = LEFT + WIDTH / 2
    return [
        *parts,
        f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle">{_text(name)}</text>',
    ]


def _up(low: float, high: float, log: bool, name: str) -> list[str]:
    values = ticks(low, high, 6)
    if log:  # whole powers of ten where there are enough
        values = [value for value in values if value == round(value)] or values
    parts = [
        f'<text transform="translate(12 {TOP + HEIGHT / 2}) rotate(-90)" text-anchor="middle">{_text(name)}</text>'
    ]
    for value in values:
        y = TOP + HEIGHT * (1 - (value - low) / (high - low))
        shown = short(10**value if log else value)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{LEFT + WIDTH}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>')
    return parts


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The range of an axis: that of `values`, or something around them where they are all but one."""
    low, high = min(values), max(values)
    margin = abs(high) * 1e-6 or 1e-6
    if high - low < margin:
        margin = abs(high) * 0.1 or 1.0
        return low - margin, high + margin
    return low, high


def _color(number: int) -> str:
    return COLORS[number] if number < len(COLORS) else f"hsl({number * 137 % 360},60%,45%)"


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _text(text: str) -> str:
    return escape(printable(" ".join(text.split())))


def _svg(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg role="img" aria-label="{_text(title)}" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" font-size="12">{"".join(parts)}</svg>\n'
    )
