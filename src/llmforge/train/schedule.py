"""Learning rate as a pure function of the step, so that a resumed run cannot disagree with an uninterrupted
one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

WARMUP_SHARE = 0.025
DECAY_SHARE = 0.1


@dataclass(frozen=True)
class Curve:
    """How the rate falls from its peak: `fall` maps the part of the fall that is done (0 to 1] to what is left of the
    way from the peak to the floor. `late`: it falls in the last `DECAY_SHARE` of all steps alone.
    """

    fall: Callable[[float], float]
    late: bool = False


# A line here is a schedule; the name is what --schedule takes.
CURVES = {
    "cosine": Curve(lambda done: 0.5 * (1 + math.cos(math.pi * done))),  # arXiv 1608.03983
    "linear": Curve(lambda done: 1 - done),
    "constant": Curve(lambda done: 1.0),
    "wsd": Curve(lambda done: 1 - done, late=True),  # warmup-stable-decay, arXiv 2404.06395
}
SCHEDULES = tuple(CURVES)


@dataclass(frozen=True)
class Schedule:
    """Linear warmup over `warmup` steps to `peak`, then to `floor` at step `total` along the curve `name`, which takes
    all steps or the last `decay`.
    """

    name: str
    peak: float
    floor: float
    warmup: int
    decay: int
    total: int

    def rate(self, step: int) -> float:
        """The learning rate of the optimizer step with number `step`, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        curve = CURVES[self.name]
        start = max(self.warmup, self.total - self.decay) if curve.late else self.warmup
        if step < start:
            return self.peak
        done = min(1.0, (step - start + 1) / max(1, self.total - start))
        left = curve.fall(done)
        return self.peak if left == 1 else self.floor + (self.peak - self.floor) * left


def make_schedule(name: str, peak: float, min_ratio: float, warmup: int | None, total: int) -> Schedule:
    """`warmup` None means 2.5 % of `total` steps; the decay of wsd takes the last 10 %."""
    steps = round(total * WARMUP_SHARE) if warmup is None else min(warmup, total)
    return Schedule(name, peak, peak * min_ratio, steps, max(1, round(total * DECAY_SHARE)), total)
