"""The figures of a two-class run, each with its interval, or with the reason why it has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .distribution import lcc, srcc
from .intervals import Measured, missing, proportion

# Caffe's SoftmaxWithLoss takes the logarithm of no less than FLT_MIN.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Bin:
    """One bin of the reliability diagram: the pictures whose probability of index 1 lies in [low, high)."""

    low: float
    high: float
    count: int
    mean_probability: float | None
    share_high: float | None


@dataclass(frozen=True)
class Metrics:
    """All figures of one run over N pictures; index 1 means high quality.

    ``confusion[label][answer]`` counts pictures. ``majority`` is the accuracy of always giving the more
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
    """−log of the label's probability for each picture, (N,) float64, clamped as Caffe clamps it."""
    probability = np.asarray(probability, np.float64)
    of_label = np.where(np.asarray(labels) == 1, probability, 1.0 - probability)
    return -np.log(np.maximum(of_label, SMALLEST_PROBABILITY))


def reliability(probability: np.ndarray, labels: np.ndarray, bins: int = 10) -> tuple[Bin, ...]:
    """The reliability diagram in equal-width bins; the last bin takes 1.0 too."""
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
        return missing("no picture")
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

    ``loss`` is each picture's own loss where the run has it in full precision, else it is computed here;
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
    count, right = len(labels), is_correct(probability, labels)
    low_count, high_count = int((labels == 0).sum()), int((labels == 1).sum())
    low_right, high_right = int(right[labels == 0].sum()), int(right[labels == 1].sum())
    bins = reliability(probability, labels)
    recall_low = proportion(low_right, low_count, "picture of label 0")
    recall_high = proportion(high_right, high_count, "picture of label 1")
    losses = cross_entropy(probability, labels) if loss is None else np.asarray(loss, np.float64)
    nothing = missing("no picture")
    one_class = missing("only one class is present") if count else nothing
    return Metrics(
        count=count,
        correct=int(right.sum()),
        ties=int((probability == 0.5).sum()),
        confusion=((low_right, low_count - low_right), (high_count - high_right, high_right)),
        accuracy=proportion(int(right.sum()), count),
        loss=Measured(float(losses.mean())) if count else nothing,
        recall_low=recall_low,
        recall_high=recall_high,
        balanced_accuracy=(
            Measured((recall_low.value + recall_high.value) / 2)
            if recall_low.value is not None and recall_high.value is not None
            else one_class
        ),
        roc_auc=_roc_auc(probability, labels)
        if low_count and high_count
        else one_class
        if count
        else nothing,
        f1=_f1(high_right, low_count - low_right, high_count - high_right),
        majority=Measured(max(low_count, high_count) / count) if count else nothing,
        always_high=Measured(high_count / count) if count else nothing,
        brier=Measured(float(np.mean((probability - labels) ** 2))) if count else nothing,
        calibration_error=calibration_error(bins),
        bins=bins,
        srcc=_against(srcc, probability, mean_score),
        lcc=_against(lcc, probability, mean_score),
    )


def _roc_auc(probability: np.ndarray, labels: np.ndarray) -> Measured:
    from sklearn.metrics import roc_auc_score

    return Measured(float(roc_auc_score(labels, probability)))


def _f1(true_high: int, false_high: int, missed_high: int) -> Measured:
    total = 2 * true_high + false_high + missed_high
    return Measured(2 * true_high / total) if total else missing("no picture is or was called high")


def _against(
    function: Callable[[np.ndarray, np.ndarray], Measured], probability: np.ndarray, scores: np.ndarray | None
) -> Measured:
    if scores is None:
        return missing("no mean scores were given")
    known = np.isfinite(scores)
    if not known.any():
        return missing("no picture has a mean score")
    return function(probability[known], np.asarray(scores, np.float64)[known])


# What a report shows of `Metrics`: the words, the field, and whether it is a share.
FIGURES = (
    ("accuracy, each picture once", "accuracy", True),
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
