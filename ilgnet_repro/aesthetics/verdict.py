"""Our run compared with the authors' log, batch by batch: identical, compatible or incompatible, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .proportions import compare_proportions

LEVEL = 0.01  # a difference less likely than this is called significant


@dataclass(frozen=True)
class Verdict:
    """How our per-batch counts compare with a log's, in one order of the list.

    ``expected_equal`` is how many batches would agree if the two had nothing in common but their accuracy,
    ``correlation`` that of the counts over batches. ``total_p`` is Fisher's exact test of the two totals,
    ``batches_p`` that of Σ (a − b)² / (2 n p (1 − p)) being as large by chance. ``same_rows`` says that,
    a shift common to all batches apart, they differ by far less than independent samples would: the order
    of the list is the log's.
    """

    order: str
    verdict: str
    batches: int
    equal: int
    expected_equal: float
    difference: int
    ours: int
    theirs: int
    count: int
    total_p: float
    chi2: float | None
    batches_p: float | None
    same_rows: bool
    correlation: float | None
    explanations: tuple[str, ...]


def batch_counts(
    correct: np.ndarray, batch_size: int, iterations: int, order: np.ndarray | None = None
) -> tuple[int, ...]:
    """Right answers in each batch of a `caffe test` over rows (N,) bool, which wraps at the end of the list.

    ``order[k]`` is the row at position k of the database; without it the rows are as given.
    Raises ValueError on an empty list.
    """
    if len(correct) == 0:
        raise ValueError("no image to make a batch of")
    rows = np.asarray(correct, bool) if order is None else np.asarray(correct, bool)[order]
    read = np.arange(iterations * batch_size) % len(rows)
    return tuple(int(total) for total in rows[read].reshape(iterations, batch_size).sum(axis=1))


def compare_batches(
    ours: Sequence[int], theirs: Sequence[int], batch_size: int, order: str = "as given"
) -> Verdict:
    """Compare right answers batch by batch; raises ValueError on numbers of batches that differ."""
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{len(ours)} batches against {len(theirs)}: nothing to compare")
    from scipy.stats import binom
    from scipy.stats import chi2 as chi2_law

    mine, log = np.asarray(ours, np.int64), np.asarray(theirs, np.int64)
    batches, count = len(mine), len(mine) * batch_size
    share_mine, share_log = mine.sum() / count, log.sum() / count
    places = np.arange(batch_size + 1)
    meet = binom.pmf(places, batch_size, share_mine) * binom.pmf(places, batch_size, share_log)
    totals = compare_proportions(int(mine.sum()), count, int(log.sum()), count)
    assert totals is not None
    pooled = (share_mine + share_log) / 2
    spread = 2 * batch_size * pooled * (1 - pooled)
    statistic = float(((mine - log) ** 2).sum() / spread) if spread else None
    batches_p = None if statistic is None else float(chi2_law.sf(statistic, batches))
    # The mean difference is subtracted first: slightly different weights or mean files shift every batch alike.
    around_shift = float(((mine - log - (mine - log).mean()) ** 2).sum())
    same_rows = bool(spread) and float(chi2_law.cdf(around_shift / spread, batches - 1)) < LEVEL / 10
    if (mine == log).all():
        verdict = "identical"
    elif totals.p_value < LEVEL or (batches_p is not None and batches_p < LEVEL):
        verdict = "incompatible"
    else:
        verdict = "compatible"
    return Verdict(
        order=order,
        verdict=verdict,
        batches=batches,
        equal=int((mine == log).sum()),
        expected_equal=float(batches * meet.sum()),
        difference=int(np.abs(mine - log).sum()),
        ours=int(mine.sum()),
        theirs=int(log.sum()),
        count=count,
        total_p=totals.p_value,
        chi2=statistic,
        batches_p=batches_p,
        same_rows=same_rows,
        correlation=_correlation(mine, log),
        explanations=_explain(verdict, same_rows, int(mine.sum()), int(log.sum())),
    )


def _explain(verdict: str, same_rows: bool, ours: int, theirs: int) -> tuple[str, ...]:
    """The likely causes. Reports contain these texts as data, so their spelling stays."""
    if verdict == "identical":
        return ("Every batch agrees: same weights, same pictures in the same order, same preprocessing.",)
    if verdict == "compatible" and same_rows:
        return (
            "The batches follow the log's: the order is the log's, and a few images near one half fall"
            " the other way (another JPEG decoder, another resize, rounding).",
        )
    unknown_order = (
        "The rows are not in the log's order: its database may have been shuffled by `convert_imageset"
        " --shuffle`, whose seed is not recorded, so the subset may be unrecoverable; a full run's answers"
        " can still be tried against the 104,729 seeds of Caffe's fallback (aesthetics/shuffle.py)."
    )
    if verdict == "compatible":
        return (
            unknown_order,
            "The totals agree within chance, which other images of the same kind would do as well.",
        )
    other_class = "The log's rows may mix the classes otherwise (AVA1's val list is sorted by class)."
    paths = (
        "Another mean file, or the other preprocessing path (centre crop of 256 against the whole image"
        " at 227), moves the scores.",
        "The weights may be another release, or trained on these images: 23,768 of AVA2's val images"
        " are in AVA1's train list.",
    )
    if same_rows:
        # The batches rise and fall with the log's, but the totals differ: a shift, not other images.
        return paths
    better = "fewer" if ours < theirs else "more"
    return (f"Our run has {better} right answers than chance allows.", unknown_order, other_class, *paths)


def _correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    from scipy.stats import pearsonr

    return float(pearsonr(first, second).statistic)


@dataclass(frozen=True)
class OrderAnalysis:
    """What a log's counts show about the order of its rows, without a net.

    ``high_rows`` of the rows read have label 1 in this order. ``dispersion`` is Σ (k − n p)² / (n p (1 − p))
    over the batches with its two-sided ``dispersion_p``: near 1 where all batches are similar samples.
    ``label_correlation`` is that of right answers with label-1 images over the batches, None where either
    never varies; ``always_high`` is what answering "high" to each row would have scored, and
    ``always_high_p`` the probability that a random subset of the list scored at least the log's total so.
    """

    rows_read: int
    high_rows: int
    dispersion: float
    dispersion_p: float
    label_correlation: float | None
    label_correlation_p: float | None
    always_high: float
    always_high_p: float
    findings: tuple[str, ...]


def analyse_order(labels: np.ndarray, counts: Sequence[int], batch_size: int) -> OrderAnalysis:
    """Compare a log's per-batch ``counts`` with ``labels`` (N,) of the whole list in one order.

    Raises ValueError if there is no batch or no row.
    """
    labels, right = np.asarray(labels), np.asarray(counts, np.float64)
    if len(right) < 2 or len(labels) == 0:
        raise ValueError(f"{len(right)} batches and {len(labels)} rows: too few to analyse")
    from scipy.stats import chi2 as chi2_law
    from scipy.stats import hypergeom, pearsonr

    high = np.asarray(batch_counts(labels == 1, batch_size, len(right)), np.float64)
    read, total = len(right) * batch_size, int(right.sum())
    share = total / read
    spread = batch_size * share * (1 - share)
    dispersion = float(((right - right.mean()) ** 2).sum() / spread) if spread else 0.0
    upper = float(chi2_law.sf(dispersion, len(right) - 1))
    correlation = _correlation(high, right)
    findings = []
    if high.sum() in (0, read):
        label = int(high.sum() > 0)
        findings.append(
            f"In this order all {read} rows have label {label}: {total} right would be a recall of"
            f" {share:.2%} on label {label} and would say nothing about the other label. No count forbids it,"
            f" but always answering high would have scored {label:.0%}, so the log would not show a net that"
            f" leans to high."
        )
    if upper > 0.025 and upper < 0.975:
        findings.append("The batches vary as samples of one population do: no block of one class is seen.")
    return OrderAnalysis(
        rows_read=read,
        high_rows=int(high.sum()),
        dispersion=dispersion / (len(right) - 1),
        dispersion_p=min(1.0, 2 * min(upper, 1 - upper)),
        label_correlation=correlation,
        label_correlation_p=None if correlation is None else float(pearsonr(high, right).pvalue),
        always_high=float(high.sum()) / read,
        always_high_p=(
            float(hypergeom.sf(total - 1, len(labels), int((labels == 1).sum()), read))
            if read <= len(labels)
            else math.nan
        ),
        findings=tuple(findings),
    )
