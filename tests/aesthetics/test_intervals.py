"""Intervals and tests between runs, against scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, chi2_contingency, fisher_exact

from ilgnet_repro.aesthetics.proportions import compare_proportions, mcnemar, proportion
from ilgnet_repro.intervals import Interval, wilson

COUNTS = [(2042, 2500), (2052, 2400), (0, 7), (7, 7), (1, 1), (3, 11), (16_000, 20_000)]


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("correct, count", COUNTS)
def test_wilson_is_scipys(correct: int, count: int, confidence: float) -> None:
    expected = binomtest(correct, count).proportion_ci(confidence, method="wilson")
    got = wilson(correct, count, confidence)
    assert got is not None
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("correct, count", [(-1, 5), (6, 5)], ids=["negative", "more than all"])
def test_wilson_refuses(correct: int, count: int) -> None:
    with pytest.raises(ValueError, match="not a proportion"):
        wilson(correct, count)


def test_no_observations() -> None:
    assert wilson(0, 0) is None
    assert compare_proportions(0, 0, 3, 4) is None
    assert proportion(0, 0, "image of label 1").reason == "no image of label 1"
    assert proportion(0, 0).reason == "no image"


def test_interval_membership() -> None:
    assert 0.8 in Interval(0.8, 0.9) and 0.79 not in Interval(0.8, 0.9)


@pytest.mark.parametrize("seed", range(6))
def test_two_proportions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, other = (int(n) for n in rng.integers(20, 400, 2))
    correct, other_correct = int(rng.binomial(count, 0.7)), int(rng.binomial(other, 0.6))
    table = [[correct, count - correct], [other_correct, other - other_correct]]
    got = compare_proportions(correct, count, other_correct, other)
    assert got is not None and got.z is not None
    assert got.p_value == pytest.approx(fisher_exact(table).pvalue)
    assert got.z**2 == pytest.approx(chi2_contingency(table, correction=False).statistic)
    assert got.compatible == (fisher_exact(table).pvalue >= 0.05)
    assert math.copysign(1, got.z) == math.copysign(1, got.difference)


def test_two_proportions_without_spread() -> None:
    got = compare_proportions(5, 5, 9, 9)
    assert got is not None and got.z is None and got.p_value == 1.0 and got.compatible


@pytest.mark.parametrize("seed", range(6))
def test_mcnemar(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.random(300) < 0.8, rng.random(300) < 0.72
    only_first = sum(bool(a and not b) for a, b in zip(first, second, strict=True))
    only_second = sum(bool(b and not a) for a, b in zip(first, second, strict=True))
    got = mcnemar(first, second)
    assert (got.only_first, got.only_second) == (only_first, only_second)
    assert got.exact_p == pytest.approx(binomtest(only_first, only_first + only_second).pvalue)
    assert got.chi2 == pytest.approx((abs(only_first - only_second) - 1) ** 2 / (only_first + only_second))
    # The chi-square law with one degree of freedom is a squared normal.
    assert got.chi2_p == pytest.approx(math.erfc(math.sqrt(got.chi2 / 2)))


def test_mcnemar_without_a_difference() -> None:
    right = np.array([True, False, True])
    got = mcnemar(right, right)
    assert (got.exact_p, got.chi2, got.chi2_p) == (1.0, None, None)


def test_mcnemar_refuses_other_images() -> None:
    with pytest.raises(ValueError, match="not the same images"):
        mcnemar(np.ones(3, bool), np.ones(4, bool))
