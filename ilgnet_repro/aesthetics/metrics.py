"""The figures of a run, two-class or of scores: each a value with its interval, or the reason why there is none.

Arrays are NumPy arrays, or what `numpy.asarray` makes of lists. A figure that its values do not define (no image, a value
that is not finite, scores that are all equal) is None with the reason; arrays whose shapes or ranges do not fit raise
`ValuesError`, which is a ValueError too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ValuesError
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


def is_correct(probability: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Which answers are right, (N,) bool: p_n > 1/2 where the label is 1, p_n < 1/2 where it is 0.

    ``probability`` is (N,), of index 1; ``labels`` (N,), 0 or 1. A tie is wrong whatever the label, as in Caffe 1.0's
    Accuracy layer. Raises ValuesError on shapes that differ.
    """
    probability, labels = np.asarray(probability), np.asarray(labels)
    _check_shapes(probability, labels, "probabilities for", "labels")
    return np.where(labels == 1, probability > 0.5, probability < 0.5)


def cross_entropy(probability: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """−log max(p_label, FLT_MIN) of each image in nats, (N,) float64: Caffe 1.0's SoftmaxWithLoss, which clamps so.

    ``probability`` is (N,), of index 1; ``labels`` (N,), 0 or 1. Raises ValuesError on shapes that differ.
    """
    probability, labels = np.asarray(probability, np.float64), np.asarray(labels)
    _check_shapes(probability, labels, "probabilities for", "labels")
    of_label = np.where(labels == 1, probability, 1.0 - probability)
    return -np.log(np.maximum(of_label, SMALLEST_PROBABILITY))


def reliability(probability: ArrayLike, labels: ArrayLike, bins: int = 10) -> tuple[Bin, ...]:
    """The reliability diagram of (N,) probabilities of index 1 in ``bins`` of equal width; the last one includes 1.0.

    Bin k has the mean probability and the share of label 1 of the images with k/bins <= p < (k+1)/bins (DeGroot and
    Fienberg, 1983). Raises ValuesError on shapes that differ, probabilities outside [0, 1], or no bin.
    """
    probability, labels = np.asarray(probability, np.float64), np.asarray(labels)
    _check_shapes(probability, labels, "probabilities for", "labels")
    _check_probabilities(probability)
    if bins < 1:
        raise ValuesError(f"bins={bins}: give at least 1")
    index = np.minimum((probability * bins).astype(int), bins - 1)
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
    """Expected calibration error, 0 to 1: Σ n_k / N |mean probability_k − share of label 1_k| (Guo et al., 2017).

    Takes the bins of `reliability`; there is no figure where they hold no image.
    """
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

    ``loss`` is each image's own loss, (N,) in nats, where the run has it in full precision, else it is computed here;
    ``mean_score`` the people's mean score, (N,), NaN where unknown. The formulas are those of scikit-learn: balanced
    accuracy is the mean of the two recalls, F1 = 2 TP / (2 TP + FP + FN), ROC-AUC the share of pairs in the right order,
    Brier = 1/N Σ(p − label)². Raises ValuesError on shapes that differ, labels other than 0 and 1, or probabilities
    outside [0, 1].
    """
    probability, labels = np.asarray(probability, np.float64), np.asarray(labels)
    _check_shapes(probability, labels, "probabilities for", "labels")
    if not np.isin(labels, (0, 1)).all():
        raise ValuesError("labels must be 0 or 1")
    _check_probabilities(probability)
    for what, values in (("losses", loss), ("mean scores", mean_score)):
        if values is not None:
            _check_shapes(np.asarray(values), labels, f"{what} for", "labels")
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
    scores = np.asarray(scores, np.float64)
    known = np.isfinite(scores)
    if not known.any():
        return missing("no image has a mean score")
    return function(probability[known], scores[known])


def _check_shapes(values: np.ndarray, others: np.ndarray, what: str, of: str) -> None:
    if values.shape != others.shape or values.ndim != 1:
        raise ValuesError(f"{values.shape} {what} {others.shape} {of}")


def _check_probabilities(probability: np.ndarray) -> None:
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValuesError("probabilities must lie between 0 and 1")


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
    _check_shapes(predicted, target, "predictions for", "scores")
    if len(predicted) < 2:
        return f"needs two images, got {len(predicted)}"
    if not (np.isfinite(predicted).all() and np.isfinite(target).all()):
        return "a value is not finite"
    if np.ptp(predicted) == 0:
        return "all predictions are equal"
    return "all scores are equal" if np.ptp(target) == 0 else ""


def srcc(predicted: ArrayLike, target: ArrayLike) -> Measured:
    """Spearman's rank correlation of two (N,) arrays, −1 to 1, each on any scale: `lcc` of their ranks, ties sharing their
    mean rank (Spearman, 1904).

    There is none of fewer than two images, of values that are not finite, or that are all equal. Raises ValuesError on
    shapes that differ.
    """
    predicted, target = np.asarray(predicted), np.asarray(target)
    reason = _reason_against(predicted, target)
    if reason:
        return missing(reason)
    from scipy.stats import spearmanr

    return Measured(float(spearmanr(predicted, target).statistic))


def lcc(predicted: ArrayLike, target: ArrayLike) -> Measured:
    """Pearson's linear correlation (PLCC) of two (N,) arrays, −1 to 1, each on any scale.

    Σ(p − mean p)(t − mean t) / √(Σ(p − mean p)² Σ(t − mean t)²) (Pearson, 1895). There is none where `srcc` has none.
    Raises ValuesError on shapes that differ.
    """
    predicted, target = np.asarray(predicted), np.asarray(target)
    reason = _reason_against(predicted, target)
    if reason:
        return missing(reason)
    from scipy.stats import pearsonr

    return Measured(float(pearsonr(predicted, target).statistic))


def mse(predicted: ArrayLike, target: ArrayLike) -> Measured:
    """Mean squared error of two (N,) arrays on one scale, in its square: 1/N Σ(p − t)².

    There is none of no image, or of values that are not finite. Raises ValuesError on shapes that differ.
    """
    predicted, target = np.asarray(predicted), np.asarray(target)
    _check_shapes(predicted, target, "predictions for", "scores")
    if predicted.size == 0:
        return missing("no image")
    if not (np.isfinite(predicted).all() and np.isfinite(target).all()):
        return missing("a value is not finite")
    return Measured(float(np.mean((predicted.astype(float) - target.astype(float)) ** 2)))


def mean_score(votes: ArrayLike) -> np.ndarray:
    """Mean score of vote counts or shares (N, B), bin k standing for score k + 1: Σ (k + 1) v_k / Σ v_k, (N,) in 1..B.

    Raises ValuesError where votes are no such table, are negative or not finite, or a row has none.
    """
    shares = _shares(votes)
    return shares @ np.arange(1, shares.shape[1] + 1)


def emd(predicted: ArrayLike, target: ArrayLike, r: Literal[1, 2] = 1) -> Measured:
    """Earth mover's distance of vote distributions (N, B), as NIMA reports it (Talebi and Milanfar 2018), equation 1.

    For each image (1/B Σ|CDF_p − CDF_q|^r)^(1/r), then the mean over images, 0 to 1; r is 2 in training and 1 where the
    figure is reported. Rows are counts or shares; each is divided by its sum. There is no figure of no image, or where a
    row is no distribution. Raises ValuesError on shapes that differ, or another r.
    """
    predicted, target = np.asarray(predicted), np.asarray(target)
    if predicted.shape != target.shape:
        raise ValuesError(f"{predicted.shape} predictions for {target.shape} votes")
    if r not in (1, 2):
        raise ValuesError(f"r={r}: give 1 or 2")
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


def _shares(votes: ArrayLike) -> np.ndarray:
    votes = np.asarray(votes, float)
    if votes.ndim != 2 or not np.isfinite(votes).all() or (votes < 0).any():
        raise ValuesError("votes must be a table of finite numbers, none negative")
    totals = votes.sum(axis=1, keepdims=True)
    if (totals == 0).any():
        raise ValuesError(f"row {int(np.flatnonzero(totals == 0)[0])} has no vote")
    shares: np.ndarray = votes / totals
    return shares
