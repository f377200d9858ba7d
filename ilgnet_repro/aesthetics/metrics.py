"""The figures of a run, two-class or of scores: each a value with its interval, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .proportions import Measured, missing, proportion

# Caffe's SoftmaxWithLoss clamps the probability to at least FLT_MIN before the logarithm.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Bin:
    """One bin of the reliability diagram: the images whose probability of index 1 is in [low, high)."""

    low: float
    high: float
    count: int
    mean_probability: float | None
    share_high: float | None


@dataclass(frozen=True)
class Metrics:
    """All figures of one run over N images; index 1 means high quality.

    ``confusion[label][answer]`` counts images. ``majority`` is the accuracy of always giving the more
    frequent label, ``always_high`` that of always answering 1.
    """

    count: int
    correct: int
    ties: int
    confusion: tuple[tuple[int, int], tuple[int, int]]
    accuracy: Measured
    loss: Measured
    recall_low: Measured
    recall_high: Measured
    balanced_accuracy: Measured
    roc_auc: Measured
    f1: Measured
    majority: Measured
    always_high: Measured
    brier: Measured
    calibration_error: Measured
    bins: tuple[Bin, ...]
    srcc: Measured
    lcc: Measured


def is_correct(probability: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which answers are right, (N,) bool: the label's probability must be strictly the larger one.

    A tie is wrong whatever the label, as in Caffe 1.0's Accuracy layer.
    """
    return np.where(labels == 1, probability > 0.5, probability < 0.5)


def cross_entropy(probability: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """−log of the label's probability for each image, (N,) float64, clamped as Caffe clamps it."""
    probability = np.asarray(probability, np.float64)
    of_label = np.where(np.asarray(labels) == 1, probability, 1.0 - probability)
    return -np.log(np.maximum(of_label, SMALLEST_PROBABILITY))


def reliability(probability: np.ndarray, labels: np.ndarray, bins: int = 10) -> tuple[Bin, ...]:
    """The reliability diagram in equal-width bins; the last bin includes 1.0."""
    index = np.minimum((np.asarray(probability, np.float64) * bins).astype(int), bins - 1)
    table = []
    for k in range(bins):
        inside = index == k
        count = int(inside.sum())
        table.append(
            Bin(
                k / bins,
                (k + 1) / bins,
                count,
                float(np.mean(probability[inside], dtype=np.float64)) if count else None,
                float(np.mean(labels[inside] == 1)) if count else None,
            )
        )
    return tuple(table)


def calibration_error(bins: tuple[Bin, ...]) -> Measured:
    """Expected calibration error: |mean probability − share of label 1|, weighted by the bins' counts."""
    total = sum(bin_.count for bin_ in bins)
    if total == 0:
        return missing("no image")
    gaps = (
        bin_.count * abs(bin_.mean_probability - bin_.share_high)
        for bin_ in bins
        if bin_.mean_probability is not None and bin_.share_high is not None
    )
    return Measured(sum(gaps) / total)


def evaluate(
    probability: np.ndarray,
    labels: np.ndarray,
    loss: np.ndarray | None = None,
    mean_score: np.ndarray | None = None,
) -> Metrics:
    """All metrics of (N,) probabilities of index 1 against (N,) labels 0 or 1.

    ``loss`` is each image's own loss where the run has it in full precision, else it is computed here;
    ``mean_score`` the people's mean score, NaN where unknown. Raises ValueError on lengths that differ,
    labels other than 0 and 1, or probabilities outside [0, 1].
    """
    probability, labels = np.asarray(probability, np.float64), np.asarray(labels)
    if probability.shape != labels.shape or probability.ndim != 1:
        raise ValueError(f"{probability.shape} probabilities for {labels.shape} labels")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("probabilities must lie between 0 and 1")
    from sklearn import metrics as scikit

    count, right = len(labels), is_correct(probability, labels)
    answers = np.where(right, labels, 1 - labels)
    (low, wrong_low), (wrong_high, high) = (
        scikit.confusion_matrix(labels, answers, labels=(0, 1)).tolist() if count else ((0, 0), (0, 0))
    )
    low_count, high_count = low + wrong_low, wrong_high + high
    bins = reliability(probability, labels)
    losses = cross_entropy(probability, labels) if loss is None else np.asarray(loss, np.float64)
    nothing = missing("no image")
    both = low_count and high_count
    one_class = missing("only one class is present") if count else nothing
    return Metrics(
        count=count,
        correct=low + high,
        ties=int((probability == 0.5).sum()),
        confusion=((low, wrong_low), (wrong_high, high)),
        accuracy=proportion(low + high, count),
        loss=Measured(float(losses.mean())) if count else nothing,
        recall_low=proportion(low, low_count, "image of label 0"),
        recall_high=proportion(high, high_count, "image of label 1"),
        balanced_accuracy=Measured(float(scikit.balanced_accuracy_score(labels, answers)))
        if both
        else one_class,
        roc_auc=Measured(float(scikit.roc_auc_score(labels, probability))) if both else one_class,
        f1=(
            Measured(float(scikit.f1_score(labels, answers)))
            if high_count or wrong_low
            else missing("no image is or was called high")
        ),
        majority=Measured(max(low_count, high_count) / count) if count else nothing,
        always_high=Measured(high_count / count) if count else nothing,
        brier=Measured(float(scikit.brier_score_loss(labels, probability))) if count else nothing,
        calibration_error=calibration_error(bins),
        bins=bins,
        srcc=_against(srcc, probability, mean_score),
        lcc=_against(lcc, probability, mean_score),
    )


def _against(
    function: Callable[[np.ndarray, np.ndarray], Measured], probability: np.ndarray, scores: np.ndarray | None
) -> Measured:
    if scores is None:
        return missing("no mean scores were given")
    known = np.isfinite(scores)
    if not known.any():
        return missing("no image has a mean score")
    return function(probability[known], np.asarray(scores, np.float64)[known])


# What a report shows of `Metrics`: title, field, and whether it is a proportion.
FIGURES = (
    ("accuracy, each image once", "accuracy", True),
    ("loss, mean −log p", "loss", False),
    ("recall of low (label 0)", "recall_low", True),
    ("recall of high (label 1)", "recall_high", True),
    ("balanced accuracy", "balanced_accuracy", True),
    ("ROC-AUC", "roc_auc", False),
    ("F1 of high", "f1", False),
    ("baseline: the more frequent label", "majority", True),
    ("baseline: always high", "always_high", True),
    ("expected calibration error", "calibration_error", False),
    ("Brier score", "brier", False),
    ("SRCC with mean scores", "srcc", False),
    ("LCC with mean scores", "lcc", False),
)


def _reason_against(predicted: np.ndarray, target: np.ndarray) -> str:
    """Why no correlation exists, or an empty string."""
    if predicted.shape != target.shape or predicted.ndim != 1:
        raise ValueError(f"{predicted.shape} predictions for {target.shape} scores")
    if len(predicted) < 2:
        return f"needs two images, got {len(predicted)}"
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
        return missing("no image")
    return Measured(float(np.mean((predicted.astype(float) - target.astype(float)) ** 2)))


def mean_score(votes: np.ndarray) -> np.ndarray:
    """Mean score of vote counts or shares (N, B), bin k standing for score k + 1: (N,) in 1..B."""
    shares = _shares(votes)
    return shares @ np.arange(1, votes.shape[1] + 1)


def emd(predicted: np.ndarray, target: np.ndarray, r: Literal[1, 2] = 1) -> Measured:
    """Earth mover's distance of vote distributions (N, B), as NIMA reports it (Talebi and Milanfar 2018).

    For each image (1/B Σ|CDF_p − CDF_q|^r)^(1/r), then the mean over images; r is 2 in training and 1
    where the figure is reported. Rows are counts or shares; each is divided by its sum.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"{predicted.shape} predictions for {target.shape} votes")
    if len(predicted) == 0:
        return missing("no image")
    try:
        pairs = zip(_shares(predicted), _shares(target), strict=True)
    except ValueError as error:
        return missing(str(error))
    from scipy.stats import energy_distance, wasserstein_distance

    bins = np.arange(predicted.shape[1])
    if r == 1:
        distances = [wasserstein_distance(bins, bins, mine, theirs) / len(bins) for mine, theirs in pairs]
    else:  # scipy's energy distance is the square root of 2 Σ (CDF_p − CDF_q)²
        distances = [
            energy_distance(bins, bins, mine, theirs) / np.sqrt(2 * len(bins)) for mine, theirs in pairs
        ]
    return Measured(float(np.mean(distances)))


def _shares(votes: np.ndarray) -> np.ndarray:
    votes = np.asarray(votes, float)
    if votes.ndim != 2 or not np.isfinite(votes).all() or (votes < 0).any():
        raise ValueError("votes must be a table of finite numbers, none negative")
    totals = votes.sum(axis=1, keepdims=True)
    if (totals == 0).any():
        raise ValueError(f"row {int(np.flatnonzero(totals == 0)[0])} has no vote")
    shares: np.ndarray = votes / totals
    return shares
