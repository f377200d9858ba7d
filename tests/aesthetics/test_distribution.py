"""Correlations against scipy, earth mover's distance against scipy's transport distance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr, wasserstein_distance

from ilgnet_repro.aesthetics.metrics import emd, lcc, mean_score, mse, srcc
from ilgnet_repro.errors import IlgnetError


@pytest.mark.parametrize("seed", range(4))
def test_against_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.normal(5, 1, 60).round(1)
    second = (first + rng.normal(0, 1, 60)).round(1)
    assert srcc(first, second).value == pytest.approx(spearmanr(first, second).statistic)
    assert lcc(first, second).value == pytest.approx(pearsonr(first, second).statistic)
    assert mse(first, second).value == pytest.approx(np.square(first - second).sum() / 60)


@pytest.mark.parametrize("seed", range(4))
def test_emd_is_transport_over_bins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 50, (7, 10)) + 1, rng.integers(0, 50, (7, 10)) + 1
    bins = np.arange(10)
    moved = [wasserstein_distance(bins, bins, a, b) / 10 for a, b in zip(first, second, strict=True)]
    assert emd(first, second).value == pytest.approx(np.mean(moved))


def test_emd_by_hand() -> None:
    """All mass one bin further of four: one of four cumulative shares differs by 1."""
    first, second = np.array([[0, 3, 0, 0]]), np.array([[0, 0, 1, 0]])
    assert emd(first, second).value == pytest.approx(0.25)
    assert emd(first, second, r=2).value == pytest.approx(0.5)


def test_mean_score_of_votes() -> None:
    assert mean_score(np.array([[1, 0, 0, 3], [0, 2, 0, 0]])).tolist() == [3.25, 2.0]


NONE = {
    "constant predictions": (srcc, [1.0, 1.0, 1.0], [1.0, 2.0, 3.0], "all predictions are equal"),
    "constant scores": (lcc, [1.0, 2.0], [4.0, 4.0], "all scores are equal"),
    "one image": (lcc, [1.0], [4.0], "needs two images, got 1"),
    "not finite": (srcc, [1.0, np.inf], [4.0, 2.0], "a value is not finite"),
    "mse of nothing": (mse, [], [], "no image"),
    "emd without a vote": (emd, [[1, 2], [0, 0]], [[1, 2], [1, 1]], "row 1 has no vote"),
    "emd of negative votes": (
        emd,
        [[1, -2]],
        [[1, 2]],
        "votes must be a table of finite numbers, none negative",
    ),
}


@pytest.mark.parametrize("function, first, second, reason", NONE.values(), ids=NONE)
def test_none_with_a_reason(function, first, second, reason) -> None:
    got = function(np.array(first), np.array(second))
    assert (got.value, got.reason) == (None, reason)


@pytest.mark.parametrize("function", [srcc, lcc, mse, emd])
def test_shapes_that_differ_are_refused(function) -> None:
    with pytest.raises(ValueError, match="predictions for") as caught:
        function(np.ones(3), np.ones(4))
    assert isinstance(caught.value, IlgnetError)


def test_a_value_that_is_not_finite_has_no_error() -> None:
    assert mse([1, 2], [2.0, math.nan]).reason == "a value is not finite"
    assert mse([1, 2], [2, 4]).value == 2.5
