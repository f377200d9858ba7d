"""Verdicts on made-up runs whose truth is known, and the published figures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact, hypergeom

from ilgnet_repro.aesthetics.published import PUBLISHED, compare_with_published, published
from ilgnet_repro.aesthetics.verdict import analyse_order, batch_counts, compare_batches
from ilgnet_repro.errors import IlgnetError

RNG = np.random.default_rng(11)
LOG = RNG.binomial(50, 0.82, 50)
NEAR = LOG.copy()
NEAR[[3, 20, 41]] += (1, -1, -1)
OTHER = RNG.binomial(50, 0.82, 50)
WORSE = RNG.binomial(50, 0.72, 50)
SHIFTED = np.maximum(LOG - 3, 0)
LUMPY = np.where(np.arange(50) < 25, LOG + 7, LOG - 7).clip(0, 50)
LUMPY[:25] -= (LUMPY.sum() - LOG.sum()) // 25

RUNS = {
    "the same": (LOG, "identical", True, "Every batch agrees"),
    "three images differ": (NEAR, "compatible", True, "the order is the log's"),
    "other images, as good": (OTHER, "compatible", False, "may be unrecoverable"),
    "other images, worse": (WORSE, "incompatible", False, "fewer right answers"),
    "the same rows, shifted": (SHIFTED, "incompatible", True, "mean file"),
    "the same total, sorted": (LUMPY, "incompatible", False, "sorted by class"),
}


@pytest.mark.parametrize("ours, verdict, same_rows, words", RUNS.values(), ids=RUNS)
def test_verdict(ours: np.ndarray, verdict: str, same_rows: bool, words: str) -> None:
    got = compare_batches(ours.tolist(), LOG.tolist(), 50)
    assert (got.verdict, got.same_rows) == (verdict, same_rows)
    assert any(words in text for text in got.explanations)
    assert (got.equal, got.difference) == ((ours == LOG).sum(), np.abs(ours - LOG).sum())
    table = [[ours.sum(), 2500 - ours.sum()], [LOG.sum(), 2500 - LOG.sum()]]
    assert got.total_p == pytest.approx(fisher_exact(table).pvalue)


def test_expected_agreement_equals_that_of_independent_runs() -> None:
    runs = np.random.default_rng(3).binomial(50, 0.8, (2, 4000))
    got = compare_batches(runs[0].tolist(), runs[1].tolist(), 50)
    assert got.expected_equal == pytest.approx((runs[0] == runs[1]).sum(), rel=0.1)


def test_all_correct_has_no_spread() -> None:
    got = compare_batches([5, 5], [5, 5], 5)
    assert (got.verdict, got.chi2, got.correlation) == ("identical", None, None)


@pytest.mark.parametrize("ours, theirs", [([1, 2], [1]), ([], [])], ids=["lengths", "nothing"])
def test_nothing_to_compare(ours: list[int], theirs: list[int]) -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        compare_batches(ours, theirs, 5)


def test_batches_wrap_as_caffes_reader_does() -> None:
    correct = np.array([1, 0, 0, 1, 1, 1, 0], bool)
    assert batch_counts(correct, 3, 4) == (1, 3, 1, 2)
    assert batch_counts(correct, 3, 2, np.array([6, 5, 4, 3, 2, 1, 0])) == (2, 1)
    with pytest.raises(ValueError, match="no image"):
        batch_counts(np.zeros(0, bool), 3, 4)


def test_order_with_one_class_first() -> None:
    labels = np.repeat([0, 1], [400, 1600])
    got = analyse_order(labels, [40] * 3 + [41, 42], 50)
    assert (got.rows_read, got.high_rows, got.always_high, got.label_correlation) == (250, 0, 0.0, None)
    assert "all 250 rows have label 0" in got.findings[0]
    tail = sum(hypergeom.pmf(k, 2000, 1600, 250) for k in range(203, 251))
    assert got.always_high_p == pytest.approx(tail)


def test_order_that_matches_the_counts() -> None:
    labels = (np.random.default_rng(2).random(1000) < 0.5).astype(int)
    counts = labels.reshape(20, 50).sum(axis=1)
    got = analyse_order(labels, counts.tolist(), 50)
    assert got.label_correlation == pytest.approx(1) and got.label_correlation_p < 1e-9
    spread = ((counts - counts.mean()) ** 2).sum() / (50 * counts.mean() / 50 * (1 - counts.mean() / 50))
    assert got.dispersion == pytest.approx(spread / 19)


@pytest.mark.parametrize("labels, counts", [([], [1, 2]), ([1], [1])], ids=["no row", "one batch"])
def test_too_few_batches_to_analyse(labels: list[int], counts: list[int]) -> None:
    with pytest.raises(ValueError, match="too few"):
        analyse_order(np.array(labels), counts, 5)


FIGURES = {
    "ava1": (2500, 0.8168, (0.801, 0.831), 0.8000, 400, 0),
    "ava2": (2400, 0.8550, (0.840, 0.869), 0.4979, 533, 31),
}


@pytest.mark.parametrize("name, expected", FIGURES.items(), ids=FIGURES)
def test_published_figures(name: str, expected: tuple) -> None:
    figure, (count, accuracy, interval, high, iterations, twice) = published(name), expected
    assert (figure.count, figure.accuracy) == (count, accuracy)
    assert (figure.interval.low, figure.interval.high) == pytest.approx(interval, abs=6e-4)
    assert figure.always_high == pytest.approx(high, abs=5e-5)
    assert (figure.full_iterations, figure.counted_twice) == (iterations, twice)


@pytest.mark.parametrize(
    "correct, count, compatible",
    [(2042, 2500, True), (16_300, 20_000, True), (16_000, 20_000, False), (17_000, 20_000, False)],
)
def test_compatible_with_published(correct: int, count: int, compatible: bool) -> None:
    got = compare_with_published("ava1", correct, count)
    assert got is not None and got.compatible is compatible


def test_no_figure_for_others() -> None:
    assert set(PUBLISHED) == {"ava1", "ava2"}
    with pytest.raises(IlgnetError, match="aadb: no figure was published"):
        published("aadb")
