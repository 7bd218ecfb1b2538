"""Learning rate as a pure function of the step, so that a resumed run cannot disagree with an uninterrupted
one.
"""

import math
from dataclasses import dataclass

COSINE, CONSTANT, WSD = "cosine", "constant", "wsd"
SCHEDULES = (COSINE, CONSTANT, WSD)
WARMUP_SHARE = 0.025
DECAY_SHARE = 0.1


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up over `warmup` steps to `peak`, then to `floor` at step `total` along the curve `name`.

    cosine: half a cosine (arXiv 1608.03983); constant: stays at the peak; wsd: stays at the peak until the
    last `decay` steps, then falls linearly (warmup-stable-decay, arXiv 2404.06395).
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
        if self.name == CONSTANT:
            return self.peak
        start = self.warmup if self.name == COSINE else max(self.warmup, self.total - self.decay)
        if step < start:
            return self.peak
        done = min(1.0, (step - start + 1) / max(1, self.total - start))
        share = 0.5 * (1 + math.cos(math.pi * done)) if self.name == COSINE else 1 - done
        return self.floor + (self.peak - self.floor) * share


def make_schedule(name: str, peak: float, min_ratio: float, warmup: int | None, total: int) -> Schedule:
    """`warmup` None means 2.5 % of `total` steps; the decay of wsd takes the last 10 %."""
    steps = round(total * WARMUP_SHARE) if warmup is None else min(warmup, total)
    return Schedule(name, peak, peak * min_ratio, steps, max(1, round(total * DECAY_SHARE)), total)
