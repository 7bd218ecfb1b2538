"""A curve of any length in bounded memory."""

import math
from dataclasses import dataclass, field

MOST = 400  # points that are shown; as many pixels as a chart has are enough


@dataclass
class Series:
    """Values of a figure by (step, tokens trained on so far). `points` are means of `size` neighbors each: two become one
    whenever there are more than 2 x MOST. `first`, `last`, `least` and `count` are exact. What is not finite is left out.
    """

    points: list[tuple[float, float, float]] = field(default_factory=list)
    size: int = 1
    count: int = 0
    first: float = math.nan
    last: float = math.nan
    least: float = math.inf
    _sums: tuple[float, float, float] = (0.0, 0.0, 0.0)
    _summed: int = 0

    def add(self, step: float, tokens: float, value: float) -> None:
        if not math.isfinite(value):
            return
        self.first = self.first if self.count else value
        self.last, self.least, self.count = value, min(self.least, value), self.count + 1
        self._sums = (self._sums[0] + step, self._sums[1] + tokens, self._sums[2] + value)
        self._summed += 1
        if self._summed == self.size:
            self.points.append(self._mean())
            self._sums, self._summed = (0.0, 0.0, 0.0), 0
        if len(self.points) > 2 * MOST:
            pairs = zip(self.points[::2], self.points[1::2], strict=False)
            odd = self.points[-1] if len(self.points) % 2 else None
            self.points = [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, (a[2] + b[2]) / 2) for a, b in pairs]
            if odd:
                self._sums, self._summed = tuple(self.size * value for value in odd), self.size  # type: ignore[assignment]
            self.size *= 2

    def line(self, by_tokens: bool) -> list[tuple[float, float]]:
        """(x, value) of every point, x the steps or the tokens."""
        points = [*self.points, *([self._mean()] if self._summed else [])]
        return [(point[1 if by_tokens else 0], point[2]) for point in points]

    def _mean(self) -> tuple[float, float, float]:
        step, tokens, value = self._sums
        return step / self._summed, tokens / self._summed, value / self._summed
