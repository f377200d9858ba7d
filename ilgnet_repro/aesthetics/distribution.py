"""Agreement with what people voted: rank and linear correlation, squared error, earth mover's distance."""

from __future__ import annotations

import numpy as np

from .intervals import Measured, missing


def _reason_against(predicted: np.ndarray, target: np.ndarray) -> str:
    """Why no correlation exists, or an empty string."""
    if predicted.shape != target.shape or predicted.ndim != 1:
        raise ValueError(f"{predicted.shape} predictions for {target.shape} scores")
    if len(predicted) < 2:
        return f"needs two pictures, got {len(predicted)}"
    if not (np.isfinite(predicted).all() and np.isfinite(target).all()):
        return "a value is not finite"
    if np.ptp(predicted) == 0:
        return "all predictions are equal"
    return "all scores are equal" if np.ptp(target) == 0 else ""


def srcc(predicted: np.ndarray, target: np.ndarray) -> Measured:
    """Spearman's rank correlation of two (N,) arrays, ties sharing their mean rank."""
    reason = _reason_against(predicted, target)
    if reason:
        return missing(reason)
    from scipy.stats import spearmanr

    return Measured(float(spearmanr(predicted, target).statistic))


def lcc(predicted: np.ndarray, target: np.ndarray) -> Measured:
    """Pearson's linear correlation (PLCC) of two (N,) arrays."""
    reason = _reason_against(predicted, target)
    if reason:
        return missing(reason)
    from scipy.stats import pearsonr

    return Measured(float(pearsonr(predicted, target).statistic))


def mse(predicted: np.ndarray, target: np.ndarray) -> Measured:
    """Mean squared error of two (N,) arrays on one scale."""
    if predicted.shape != target.shape:
        raise ValueError(f"{predicted.shape} predictions for {target.shape} scores")
    if predicted.size == 0:
        return missing("no picture")
    return Measured(float(np.mean((predicted.astype(float) - target.astype(float)) ** 2)))


def mean_score(votes: np.ndarray) -> np.ndarray:
    """Mean score of vote counts or shares (N, B), bin k standing for score k + 1: (N,) in 1..B."""
    shares = _shares(votes)
    return shares @ np.arange(1, votes.shape[1] + 1)


def emd(predicted: np.ndarray, target: np.ndarray, r: int = 1) -> Measured:
    """Earth mover's distance of vote distributions (N, B), as NIMA reports it (Talebi and Milanfar 2018).

    For each picture (1/B Σ|CDF_p − CDF_q|^r)^(1/r), then the mean over pictures; r is 2 in training and 1
    where the figure is reported. Rows are counts or shares; each is divided by its sum.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"{predicted.shape} predictions for {target.shape} votes")
    if len(predicted) == 0:
        return missing("no picture")
    try:
        gap = np.cumsum(_shares(predicted) - _shares(target), axis=1)
    except ValueError as error:
        return missing(str(error))
    return Measured(float(np.mean(np.mean(np.abs(gap) ** r, axis=1) ** (1 / r))))


def _shares(votes: np.ndarray) -> np.ndarray:
    votes = np.asarray(votes, float)
    if votes.ndim != 2 or not np.isfinite(votes).all() or (votes < 0).any():
        raise ValueError("votes must be a table of finite numbers, none negative")
    totals = votes.sum(axis=1, keepdims=True)
    if (totals == 0).any():
        raise ValueError(f"row {int(np.flatnonzero(totals == 0)[0])} has no vote")
    return votes / totals
