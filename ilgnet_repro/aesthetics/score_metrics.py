"""What models of scores are reported by: SRCC, LCC, MSE, accuracy at a cut and EMD, with bootstrap intervals.

SRCC, LCC, MSE and EMD themselves are in `metrics`. The intervals are of the bootstrap (Efron, 1979): images are drawn
with replacement as often as there are images, and the interval has the middle 95 % of what the draws give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from ..errors import ValuesError
from ..intervals import RESAMPLES
from ..intervals import bootstrap as resampled
from .metrics import emd, lcc, mse, srcc
from .proportions import Measured, missing, proportion

Metric = Callable[..., Measured]


def accuracy_at(predicted: np.ndarray, target: np.ndarray, cut: float = 5.0) -> Measured:
    """Return the share of N images of which both (N,) scores, or neither, are above ``cut``; with Wilson's interval.

    1/N Σ [p_n > c] = [t_n > c], 0 to 1; AVA's c is 5 (Murray et al., 2012: of high quality where the mean is above 5).
    There is none of values that are not finite, or of no image. Raises ValuesError on shapes that differ.
    """
    predicted, target = np.asarray(predicted), np.asarray(target)
    if predicted.shape != target.shape or predicted.ndim != 1:
        raise ValuesError(f"{predicted.shape} predictions for {target.shape} scores")
    if not (np.isfinite(predicted).all() and np.isfinite(target).all()):
        return missing("a value is not finite")
    return proportion(int(((predicted > cut) == (target > cut)).sum()), len(target))


def image_emds(predicted: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return each image's 1/B Σ|CDF_p − CDF_q| of (N, B) vote counts or shares, (N,): NIMA's EMD with r = 1.

    Talebi and Milanfar (2018), equation 1. Raises ValuesError where shapes differ, or a row is no distribution.
    """
    predicted, target = np.asarray(predicted), np.asarray(target)
    if predicted.shape != target.shape or predicted.ndim != 2:
        raise ValuesError(f"{predicted.shape} predictions for {target.shape} votes")
    shares = []
    for votes in (np.asarray(predicted, np.float64), np.asarray(target, np.float64)):
        totals = votes.sum(1, keepdims=True)
        if not np.isfinite(votes).all() or (votes < 0).any() or (totals == 0).any():
            raise ValuesError("votes must be finite, none negative, and not all 0 in a row")
        shares.append(votes / totals)
    distances: np.ndarray = np.abs(np.cumsum(shares[0] - shares[1], axis=1)).mean(1)
    return distances


def bootstrap(
    metric: Metric,
    *values: np.ndarray,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Measured:
    """Return ``metric(*values)`` with its percentile bootstrap interval over the N rows of the values.

    The rows of all values, (N, ...), are drawn together, by the rule of `intervals.bootstrap` (Efron, 1979). Raises
    ValuesError where their numbers of rows differ.
    """
    if len({len(one) for one in values}) > 1:
        raise ValuesError(
            f"values of {', '.join(str(len(one)) for one in values)} rows; give as many of each"
        )
    found = metric(*values)
    if found.value is None or len(values[0]) < 2:
        return found

    def drawn(rows: np.ndarray) -> float:
        value = metric(*(one[rows] for one in values)).value
        return math.nan if value is None else value

    interval = resampled(drawn, len(values[0]), resamples=resamples, confidence=confidence, seed=seed)
    return Measured(found.value, interval=interval)


def mean_of_rows(values: np.ndarray) -> Measured:
    """Return the mean of (N,) values, in their unit; none of no value."""
    return Measured(float(np.mean(values, dtype=np.float64))) if len(values) else missing("no image")


def score_figures(
    predicted: Mapping[str, np.ndarray],
    target: Mapping[str, np.ndarray],
    *,
    cut: float = 5.0,
    scale: float = 1.0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Measured]:
    """Return the figures of N predictions by name, each with its bootstrap interval.

    Both hold ``score`` (N,), on one scale, and may hold ``distribution`` (N, B). MSE is of the scores divided by
    ``scale`` (TANet reports it of a tenth of TAD66K's scores).
    """
    ours, theirs = np.asarray(predicted["score"], np.float64), np.asarray(target["score"], np.float64)
    options = {"resamples": resamples, "seed": seed}
    figures = {
        "SRCC": bootstrap(srcc, ours, theirs, **options),
        "LCC": bootstrap(lcc, ours, theirs, **options),
        "MSE": bootstrap(mse, ours / scale, theirs / scale, **options),
        "accuracy": bootstrap(lambda p, t: accuracy_at(p, t, cut), ours, theirs, **options),
    }
    if "distribution" in predicted and "distribution" in target:
        figures["EMD"] = distribution_emd(predicted["distribution"], target["distribution"], **options)
    return figures


def distribution_emd(
    predicted: np.ndarray, target: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Measured:
    """Return the EMD with r = 1 of (N, B) votes, as `metrics.emd` computes it, with its bootstrap interval."""
    try:
        distances = image_emds(predicted, target)
    except ValueError:
        return emd(predicted, target)  # says why there is none
    return bootstrap(mean_of_rows, distances, resamples=resamples, seed=seed)
