"""Confidence intervals: Wilson's of a proportion, and the bootstrap of any figure of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000


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


def bootstrap(
    figure: Callable[[np.ndarray], float],
    count: int,
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """The percentile interval of a figure of ``count`` rows, whose argument are the numbers of the rows drawn.

    Draws that do not define the figure, which is NaN then (a correlation of equal values), are left out; there is no
    interval where more than half of them are, nor where ``count`` is below 2.  The same seed gives the same interval.
    """
    if count < 2:
        return None
    random = np.random.default_rng(seed)
    drawn = np.array([figure(random.integers(count, size=count)) for _ in range(resamples)], np.float64)
    defined = drawn[~np.isnan(drawn)]
    if 2 * len(defined) <= resamples:
        return None
    low, high = np.quantile(defined, ((1 - confidence) / 2, (1 + confidence) / 2))
    return Interval(float(low), float(high))
