"""What results say: curves, intervals over documents, and break-even.

Everything is computed on resampled documents at once: `weights` (B, documents) says how often each document stands in
each of B samples, the first of which is the sample itself. Arms are measured on the same documents, so differences and
break-even come of the same samples.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.data import CHINESE, ENGLISH

Floats = npt.NDArray[np.float64]
SAMPLES, GRID = 1000, 200
Line = Mapping[str, Any]


def weights(documents: Mapping[str, int], samples: int = SAMPLES) -> dict[str, Floats]:
    """(samples + 1, documents) for each label: ones, then draws with replacement (Efron's bootstrap)."""
    random = np.random.default_rng(0)
    return {
        label: np.concatenate(
            [np.ones((1, count)), random.multinomial(count, np.full(count, 1 / count), samples)]
        )
        for label, count in documents.items()
    }


def bits_per_byte(line: Line, label: str, drawn: Mapping[str, Floats]) -> Floats:
    """(samples + 1,) of one held-out set."""
    held = line["held"][label]
    found: Floats = (drawn[label] @ np.array(held["bits"])) / (drawn[label] @ np.array(held["bytes"], float))
    return found


def mean_bits(line: Line, labels: Iterable[str], drawn: Mapping[str, Floats]) -> Floats:
    """(samples + 1,) the mean over held-out sets."""
    mean: Floats = np.mean([bits_per_byte(line, label, drawn) for label in labels], axis=0)
    return mean


@dataclass(frozen=True)
class Curve:
    """Points of one arm after its start, by FLOPs: `flops` (p,), `bits` (p, samples + 1) of the Chinese sets."""

    arm: str
    flops: Floats
    bits: Floats

    def at(self, flops: Floats) -> Floats:
        """(len(flops), samples + 1), between points linear in the logarithm of FLOPs."""
        position = np.interp(np.log(flops), np.log(self.flops), np.arange(len(self.flops)))
        low = np.minimum(position.astype(int), len(self.flops) - 2)
        share = (position - low)[:, None]
        between: Floats = (1 - share) * self.bits[low] + share * self.bits[low + 1]
        return between


@dataclass(frozen=True)
class Family:
    """Arms that differ in learning rates and seed: `lines` by arm, in the order of parts."""

    name: str
    arms: dict[str, list[Line]]

    def curves(self, drawn: Mapping[str, Floats]) -> list[Curve]:
        return [
            Curve(
                arm,
                np.array([line["flops"] for line in lines if line["part"]]),
                np.array([mean_bits(line, CHINESE, drawn) for line in lines if line["part"]]),
            )
            for arm, lines in self.arms.items()
        ]

    def best(self, drawn: Mapping[str, Floats]) -> list[Line]:
        """The lines of the arm that ends lowest."""
        return min(self.arms.values(), key=lambda lines: float(mean_bits(lines[-1], CHINESE, drawn)[0]))


def families(lines: Iterable[Line]) -> dict[str, Family]:
    """Lines of one base by family, in the order in which they first stand."""
    found: dict[str, dict[str, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        found[line["family"]][line["arm"]].append(line)
    for arms in found.values():
        for arm, points in arms.items():
            arms[arm] = sorted(points, key=lambda line: line["part"])
    return {name: Family(name, dict(arms)) for name, arms in found.items()}


def lower_envelope(curves: Sequence[Curve], flops: Floats) -> Floats:
    """(len(flops), samples + 1) the lowest of the curves at each compute: each sample has its own best learning rate."""
    lowest: Floats = np.min([curve.at(flops) for curve in curves], axis=0)
    return lowest


@dataclass(frozen=True)
class BreakEven:
    """Training FLOPs from which on a model with new tokens is below the one without: `flops`, None where that is not reached;
    `low`, `high` bound 95 % of the samples (infinity: not reached); `reached` is the share of samples in which it is.
    `first`: it is below from the first point on, so break-even may lie earlier.
    """

    flops: float | None
    low: float
    high: float
    reached: float
    first: bool


def break_even(extended: Sequence[Curve], plain: Sequence[Curve]) -> BreakEven:
    """The least compute from which the lower envelope of `extended` stays at or below that of `plain`, to the end of what
    both have.
    """
    begin = max(min(c.flops[0] for c in curves) for curves in (extended, plain))
    end = min(max(c.flops[-1] for c in curves) for curves in (extended, plain))
    grid = np.exp(np.linspace(np.log(begin), np.log(end), GRID))
    above = lower_envelope(extended, grid) > lower_envelope(plain, grid)
    last_above = np.where(above.any(axis=0), GRID - 1 - above[::-1].argmax(axis=0), -1)
    crossing = np.where(last_above == GRID - 1, np.inf, grid[np.minimum(last_above + 1, GRID - 1)])
    low, high = np.quantile(crossing[1:], [0.025, 0.975], method="nearest")
    return BreakEven(
        flops=None if np.isinf(crossing[0]) else float(crossing[0]),
        low=float(low),
        high=float(high),
        reached=float(np.isfinite(crossing[1:]).mean()),
        first=bool(last_above[0] == -1),
    )


def interval(values: Floats) -> tuple[float, float, float]:
    """(of the sample itself, 2.5 %, 97.5 %)."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return float(values[0]), float(low), float(high)


def english_change(
    line: Line, start: Line, label: str, drawn: Mapping[str, Floats]
) -> tuple[float, float, float]:
    """Relative change of an English set since the start without new tokens, with its interval."""
    if label not in ENGLISH:
        raise ValueError(f"{label} is not one of {', '.join(ENGLISH)}.")
    return interval(bits_per_byte(line, label, drawn) / bits_per_byte(start, label, drawn) - 1)
