"""Proportions: Wilson intervals, and tests between two runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..intervals import Interval, wilson


@dataclass(frozen=True)
class Measured:
    """A figure, or ``None`` with the reason why there is none."""

    value: float | None
    reason: str = ""
    interval: Interval | None = None


def missing(reason: str) -> Measured:
    """The figure that these inputs do not define."""
    return Measured(None, reason)


def proportion(correct: int, count: int, what: str = "image") -> Measured:
    """``correct / count`` with its 95 % Wilson interval."""
    if count == 0:
        return missing(f"no {what}")
    return Measured(correct / count, interval=wilson(correct, count))


@dataclass(frozen=True)
class Compatibility:
    """Whether two proportions could be equal: Fisher's exact test and the z statistic."""

    difference: float
    z: float | None
    p_value: float
    compatible: bool


def compare_proportions(
    correct: int, count: int, other_correct: int, other_count: int, level: float = 0.05
) -> Compatibility | None:
    """Compare two independent proportions; ``compatible`` while Fisher's p is at least ``level``.

    Two runs over the same images are not independent, and the test is then conservative: use ``mcnemar``
    where the answers per image are known. None where either count is 0.
    """
    if count == 0 or other_count == 0:
        return None
    from scipy.stats import chi2_contingency, fisher_exact

    table = [[correct, count - correct], [other_correct, other_count - other_correct]]
    p_value = float(fisher_exact(table).pvalue)
    difference = correct / count - other_correct / other_count
    z = None
    if 0 < correct + other_correct < count + other_count:  # the pooled proportion has a variance
        z = math.copysign(math.sqrt(chi2_contingency(table, correction=False).statistic), difference)
    return Compatibility(difference, z, p_value, p_value >= level)


@dataclass(frozen=True)
class McNemar:
    """Two runs on the same images: how many only one of them got right, and the test of the difference."""

    only_first: int
    only_second: int
    exact_p: float
    chi2: float | None
    chi2_p: float | None
    images: int = 0  # that both runs read


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """McNemar's test on two boolean arrays (same images, same order): right or wrong.

    ``exact_p`` is the two-sided binomial test of the discordant images at one half; ``chi2`` is the
    approximation with Edwards' continuity correction, None where no image is discordant.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} and {second.shape}: not the same images")
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    discordant = only_first + only_second
    if discordant == 0:
        return McNemar(0, 0, 1.0, None, None, len(first))
    from scipy.stats import binomtest
    from scipy.stats import chi2 as chi2_law

    statistic = max(0, abs(only_first - only_second) - 1) ** 2 / discordant
    exact = float(binomtest(only_first, discordant, 0.5).pvalue)
    return McNemar(only_first, only_second, exact, statistic, float(chi2_law.sf(statistic, 1)), len(first))
