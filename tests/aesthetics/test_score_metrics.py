"""Figures of scores against scipy and formulas by hand, their bootstrap intervals, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ilgnet_repro.aesthetics.metrics import emd, lcc, mse, srcc
from ilgnet_repro.aesthetics.proportions import wilson
from ilgnet_repro.aesthetics.score_metrics import accuracy_at, bootstrap, image_emds, score_figures
from ilgnet_repro.errors import IlgnetError


def _scores(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(7)
    target = random.uniform(1, 10, count)
    return np.round(target + random.normal(0, 1.5, count), 1), target  # rounded, so that there are ties


def test_accuracy_is_the_share_on_the_same_side_of_the_cut() -> None:
    predicted, target = np.array([5.0, 5.01, 4.0, 9.0, 6.0]), np.array([4.0, 5.0, 5.0, 8.0, 2.0])
    found = accuracy_at(predicted, target, 5.0)
    assert found.value == 3 / 5  # a score of exactly 5 is not above it
    assert found.interval == wilson(3, 5)
    assert accuracy_at(predicted, target, 8.5).value == 4 / 5


def test_emd_of_each_image_is_the_slow_sum() -> None:
    random = np.random.default_rng(3)
    p, q = random.dirichlet(np.ones(10), 7), random.integers(1, 9, (7, 10))
    shares = q / q.sum(1, keepdims=True)
    wanted = [
        sum(abs(p[n, : k + 1].sum() - shares[n, : k + 1].sum()) for k in range(10)) / 10 for n in range(7)
    ]
    assert image_emds(p, q) == pytest.approx(wanted, rel=1e-12)
    assert np.mean(wanted) == pytest.approx(emd(p, q).value, rel=1e-9)


METRICS = {
    "srcc": (srcc, lambda p, t: stats.spearmanr(p, t).statistic),
    "lcc": (lcc, lambda p, t: stats.pearsonr(p, t).statistic),
    "mse": (mse, lambda p, t: np.mean((p - t) ** 2)),
}


@pytest.mark.parametrize(("metric", "formula"), METRICS.values(), ids=METRICS)
def test_the_interval_has_the_middle_of_the_draws(metric, formula) -> None:
    predicted, target = _scores()
    found = bootstrap(metric, predicted, target, resamples=200, confidence=0.9, seed=5)
    random = np.random.default_rng(5)
    draws = sorted(
        formula(predicted[rows], target[rows]) for rows in (random.integers(60, size=60) for _ in range(200))
    )
    assert found.value == pytest.approx(formula(predicted, target))
    # The quantiles 0.05 and 0.95 of 200 sorted draws lie between the 10th and 11th, and the 189th and 190th of them.
    assert found.interval.low == pytest.approx(draws[9] + 0.95 * (draws[10] - draws[9]))
    assert found.interval.high == pytest.approx(draws[189] + 0.05 * (draws[190] - draws[189]))
    assert found == bootstrap(metric, predicted, target, resamples=200, confidence=0.9, seed=5)


def test_the_interval_is_scipys_up_to_its_draws() -> None:
    predicted, target = _scores()
    ours = bootstrap(lcc, predicted, target, resamples=1000).interval
    theirs = stats.bootstrap(
        (predicted, target), lambda p, t: stats.pearsonr(p, t).statistic, paired=True, vectorized=False,
        n_resamples=1000, method="percentile", random_state=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.015)


def test_figures_of_a_run() -> None:
    predicted, target = _scores()
    random = np.random.default_rng(9)
    votes = random.dirichlet(np.ones(10), (2, 60))
    found = score_figures(
        {"score": predicted, "distribution": votes[0]}, {"score": target, "distribution": votes[1]},
        cut=5, scale=10, resamples=20,
    )  # fmt: skip
    assert list(found) == ["SRCC", "LCC", "MSE", "accuracy", "EMD"]
    assert found["MSE"].value == pytest.approx(np.mean((predicted - target) ** 2) / 100)
    assert found["EMD"].value == pytest.approx(image_emds(*votes).mean())
    assert all(one.interval is not None and one.value in one.interval for one in found.values())
    assert "EMD" not in score_figures(
        {"score": predicted}, {"score": target, "distribution": votes[1]}, resamples=2
    )


UNDEFINED = {
    "equal predictions": (lambda: bootstrap(srcc, np.ones(5), np.arange(5.0)), "all predictions are equal"),
    "one image": (lambda: bootstrap(lcc, np.ones(1), np.ones(1)), "needs two images, got 1"),
    "no image": (lambda: bootstrap(mse, np.ones(0), np.ones(0)), "no image"),
    "not finite": (lambda: accuracy_at(np.array([np.nan, 1]), np.ones(2)), "a value is not finite"),
    "accuracy of no image": (lambda: accuracy_at(np.ones(0), np.ones(0)), "no image"),
}


@pytest.mark.parametrize(("call", "reason"), UNDEFINED.values(), ids=UNDEFINED)
def test_undefined_figures_say_why(call, reason) -> None:
    found = call()
    assert (found.value, found.interval, found.reason) == (None, None, reason)


def test_draws_that_define_nothing_leave_no_interval() -> None:
    # Two images: half of all draws take one of them twice.
    found = bootstrap(srcc, np.array([1.0, 2.0]), np.array([3.0, 4.0]), resamples=1)
    assert found.value == pytest.approx(1)
    assert found.interval is None or found.interval.low == pytest.approx(1)


REFUSED = {
    "accuracy": (lambda: accuracy_at(np.ones(3), np.ones(2)), "(3,) predictions for (2,) scores"),
    "emd": (lambda: image_emds(np.ones((2, 3)), np.ones((2, 4))), "(2, 3) predictions for (2, 4) votes"),
    "no vote": (
        lambda: image_emds(np.ones((2, 3)), np.array([[1, 1, 1], [0, 0, 0]])),
        "votes must be finite, none negative, and not all 0 in a row",
    ),
    "bootstrap": (
        lambda: bootstrap(srcc, np.ones(3), np.ones(2)),
        "values of 3, 2 rows; give as many of each",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(call, message) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert isinstance(caught.value, IlgnetError)
    assert str(caught.value) == message
