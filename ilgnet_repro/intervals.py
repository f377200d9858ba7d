"""Confidence intervals: Wilson's of a proportion, and the bootstrap of any figure of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 500


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a figure; that of a proportion has both ends in [0, 1]."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def wilson(correct: int, count: int, confidence: float = 0.95) -> Interval | None:
    """Wilson's score interval of ``correct`` out of ``count`` (Wilson 1927); None where ``count`` is 0.

    Unlike the normal approximation it stays inside [0, 1] and has a width at 0 and at ``count``.
    """
    if not 0 <= correct <= count:
        raise ValueError(f"{correct} correct of {count}: not a proportion")
    if count == 0:
        return None
    from scipy.stats import binomtest

    interval = binomtest(correct, count).proportion_ci(confidence, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def bootstrap(figure: Callable[[np.ndarray], float], count: int, confidence: float = 0.95) -> Interval:
    """The percentile interval of a figure of ``count`` rows, whose argument are the numbers of the rows drawn.

    The draws are seeded: the same rows give the same interval.
    """
    rng = np.random.default_rng(count)
    drawn = np.array([figure(rng.integers(0, count, count)) for _ in range(RESAMPLES)])
    tail = 50 * (1 - confidence)
    # A resample of equal values has no correlation: it counts as none.
    low, high = np.percentile(np.nan_to_num(drawn, nan=0.0), (tail, 100 - tail))
    return Interval(float(low), float(high))
