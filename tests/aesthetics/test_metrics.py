"""Metrics against scikit-learn and scipy on random inputs, and reasons where none is defined."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from ilgnet_repro.aesthetics.metrics import cross_entropy, evaluate, is_correct, reliability
from ilgnet_repro.errors import IlgnetError, ValuesError

GOLDEN = Path(__file__).parents[1] / "golden"


def _random(seed: int, count: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.7).astype(int)
    # Rounded, so that ranks and scores have ties; but never to one half, where Caffe's rule differs.
    probability = np.round(np.clip(0.25 * rng.standard_normal(count) + 0.3 + 0.35 * labels, 0.01, 0.99), 2)
    probability[probability == 0.5] = 0.51
    return probability, labels, rng.uniform(1, 10, count).round(1)


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_scikit_learn(seed: int) -> None:
    probability, labels, scores = _random(seed)
    answers = (probability > 0.5).astype(int)
    got = evaluate(probability, labels, mean_score=scores)
    expected = {
        "accuracy": sk.accuracy_score(labels, answers),
        "loss": sk.log_loss(labels, probability),
        "recall_low": sk.recall_score(labels, answers, pos_label=0),
        "recall_high": sk.recall_score(labels, answers),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, answers),
        "roc_auc": sk.roc_auc_score(labels, probability),
        "f1": sk.f1_score(labels, answers),
        "brier": sk.brier_score_loss(labels, probability),
        "majority": max(labels.mean(), 1 - labels.mean()),
        "always_high": labels.mean(),
        "srcc": stats.spearmanr(probability, scores).statistic,
        "lcc": stats.pearsonr(probability, scores).statistic,
    }
    assert {name: getattr(got, name).value for name in expected} == pytest.approx(expected)
    assert np.array_equal(got.confusion, sk.confusion_matrix(labels, answers))


@pytest.mark.parametrize("seed", range(3))
def test_roc_auc_is_the_share_of_ordered_pairs(seed: int) -> None:
    probability, labels, _ = _random(seed, 80)
    high, low = probability[labels == 1], probability[labels == 0]
    won = sum((a > b) + (a == b) / 2 for a in high for b in low)
    assert evaluate(probability, labels).roc_auc.value == pytest.approx(won / len(high) / len(low))


def test_calibration_bins_by_hand() -> None:
    probability = np.array([0.05, 0.15, 0.19, 0.95, 1.0])
    labels = np.array([0, 1, 0, 1, 0])
    bins = reliability(probability, labels)
    assert [bin_.count for bin_ in bins] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert (bins[1].mean_probability, bins[1].share_high) == pytest.approx((0.17, 0.5))
    assert bins[2].mean_probability is None and bins[2].share_high is None
    by_hand = (1 * 0.05 + 2 * abs(0.17 - 0.5) + 2 * abs(0.975 - 0.5)) / 5
    assert evaluate(probability, labels).calibration_error.value == pytest.approx(by_hand)


def test_a_tie_is_wrong_for_both_labels() -> None:
    got = evaluate(np.array([0.5, 0.5]), np.array([0, 1]))
    assert (got.correct, got.ties, got.confusion) == (0, 2, ((0, 1), (1, 0)))


def test_tie_rule_is_caffes() -> None:
    """The golden rows of 0 and 1 tie everywhere; Caffe called every one wrong."""
    with np.load(GOLDEN / "layers" / "Accuracy-ties.npz") as case:
        scores, labels, accuracy = case["in/x"], case["in/l"].astype(int), float(case["out/o"])
    of_label = scores[np.arange(len(labels)), labels]
    best_other = np.array([np.delete(row, label).max() for row, label in zip(scores, labels, strict=True)])
    credit = np.where(of_label == best_other, 0.5, np.where(of_label > best_other, 1.0, 0.0))
    assert is_correct(credit, np.ones(len(credit), int)).mean() == accuracy


def test_loss_is_clamped_at_flt_min() -> None:
    losses = cross_entropy(np.array([0.0, 1.0, 0.25]), np.array([1, 0, 1]))
    assert losses == pytest.approx([126 * math.log(2)] * 2 + [math.log(4)])


def test_the_runs_own_loss_is_used() -> None:
    assert evaluate(np.array([0.9, 0.2]), np.array([1, 0]), loss=np.array([1.0, 4.0])).loss.value == 2.5


NONE = {
    "no image": ([], [], {"accuracy", "loss", "roc_auc", "majority", "calibration_error", "f1", "brier"}),
    "only high": ([0.9, 0.8, 0.2], [1, 1, 1], {"recall_low", "balanced_accuracy", "roc_auc"}),
    "only low": ([0.3, 0.8], [0, 0], {"recall_high", "balanced_accuracy", "roc_auc"}),
    "only low, none called high": ([0.3, 0.1], [0, 0], {"f1", "recall_high", "roc_auc"}),
    "no scores": ([0.3, 0.8], [0, 1], {"srcc", "lcc"}),
}


@pytest.mark.parametrize("probability, labels, without", NONE.values(), ids=NONE)
def test_none_with_a_reason(probability: list[float], labels: list[int], without: set[str]) -> None:
    got = evaluate(np.array(probability), np.array(labels, int))
    for name in without:
        measured = getattr(got, name)
        assert measured.value is None and measured.reason, name


ONE_CLASS = {
    "high, some called low": ([0.9, 0.8, 0.2], [1, 1, 1], 4 / 5, (0.01 + 0.04 + 0.64) / 3),
    "low, one called high": ([0.3, 0.8], [0, 0], 0.0, (0.09 + 0.64) / 2),
    "high, all called low": ([0.4], [1], 0.0, 0.36),
}


@pytest.mark.parametrize("probability, labels, f1, brier", ONE_CLASS.values(), ids=ONE_CLASS)
@pytest.mark.filterwarnings("error")
def test_one_class_has_f1_and_brier_by_hand(
    probability: list[float], labels: list[int], f1: float, brier: float
) -> None:
    got = evaluate(np.array(probability), np.array(labels))
    assert (got.f1.value, got.brier.value) == pytest.approx((f1, brier), abs=1e-12)


SCORES = {
    "all unknown": ([math.nan, math.nan], "no image has a mean score"),
    "one known": ([5.0, math.nan], "needs two images, got 1"),
    "all equal": ([5.0, 5.0], "all scores are equal"),
}


@pytest.mark.parametrize("scores, reason", SCORES.values(), ids=SCORES)
def test_no_correlation_with_a_reason(scores: list[float], reason: str) -> None:
    got = evaluate(np.array([0.1, 0.9]), np.array([0, 1]), mean_score=np.array(scores))
    assert (got.srcc.value, got.srcc.reason) == (None, reason)


REFUSED = {
    "lengths": ([0.1, 0.2], [1], "2,.* probabilities"),
    "label": ([0.1], [2], "labels must be 0 or 1"),
    "probability above 1": ([1.1], [1], "between 0 and 1"),
    "probability not a number": ([math.nan], [1], "between 0 and 1"),
}


@pytest.mark.parametrize("probability, labels, message", REFUSED.values(), ids=REFUSED)
def test_refused(probability: list[float], labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(np.array(probability), np.array(labels))
    assert isinstance(caught.value, IlgnetError)
    if len(probability) != len(labels):
        for function in (is_correct, cross_entropy, reliability):
            with pytest.raises(ValuesError, match=message):
                function(probability, labels)
