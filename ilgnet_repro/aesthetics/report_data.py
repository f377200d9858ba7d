"""What a report shows: a run's figures, compared with the published one, the authors' log and another run."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ..errors import DataError
from ..intervals import Interval, wilson
from .author_logs import TestLog
from .caffe_shuffle import SeedSearch, caffe_shuffle, search_seed
from .metrics import FIGURES, Metrics, evaluate
from .proportions import Compatibility, McNemar, Measured, mcnemar
from .published import PUBLISHED, PublishedFigure, compare_with_published
from .results import RunResult
from .verdict import Verdict, batch_counts, compare_batches

RANDOM_WEIGHTS = "Seeded random weights: these figures test the program and say nothing about ILGNet."


@dataclasses.dataclass(frozen=True)
class Report:
    """All that a report shows; ``mcnemar`` is against ``other_name``, None without another run."""

    run: RunResult
    metrics: Metrics
    figure: PublishedFigure | None
    compatibility: Compatibility | None
    log: TestLog | None
    log_counts: tuple[int, ...]
    verdicts: tuple[Verdict, ...]
    not_compared: str  # why the log was not compared; empty where it was
    seeds: SeedSearch | None
    other_name: str
    mcnemar: McNemar | None
    warnings: tuple[str, ...]


def build_report(
    run: RunResult,
    log: TestLog | None = None,
    other: RunResult | None = None,
    other_name: str = "other run",
    *,
    search_seeds: bool = False,
) -> Report:
    """Compute all figures of ``run``, and compare it with the authors' ``log`` and an ``other`` run where given.

    With ``search_seeds`` every seed that Caffe's shuffle falls back to is tried on the answers.  Raises DataError
    if the other run shares no image with this one, or the seeds cannot be searched.
    """
    images = run.images
    figure = PUBLISHED.get(run.dataset)
    warnings = list(run.warnings)
    if run.random_weights:
        warnings.insert(0, RANDOM_WEIGHTS)
    log_counts = log.counts() if log else ()
    verdicts = _verdicts(run, log, log_counts, figure)
    return Report(
        run=run,
        metrics=evaluate(images.probability, images.labels, images.loss, images.mean_score),
        figure=figure,
        # The figure of random weights is not a figure of ILGNet, and must not look like one.
        compatibility=(
            compare_with_published(run.dataset, run.correct, run.count)
            if figure and not run.random_weights
            else None
        ),
        log=log,
        log_counts=log_counts,
        verdicts=verdicts,
        not_compared="" if verdicts or log is None else _why_not(run, log, log_counts),
        seeds=_search(run, log, log_counts) if search_seeds else None,
        other_name=other_name,
        mcnemar=_against_other(run, other) if other else None,
        warnings=tuple(warnings),
    )


def _verdicts(
    run: RunResult, log: TestLog | None, counts: tuple[int, ...], figure: PublishedFigure | None
) -> tuple[Verdict, ...]:
    """The run compared with the log in list order, and in the order of its candidate shuffle."""
    if log is None or not counts:
        return ()
    size = log.batch_size or run.batch_size
    correct = run.images.correct
    verdicts = []
    ours: tuple[int, ...] = ()
    if run.batch_size == size and len(run.batches) >= len(counts):
        ours = tuple(batch.correct for batch in run.batches[: len(counts)])
    elif len(correct) >= size * len(counts):
        ours = batch_counts(correct, size, len(counts))
    if ours:
        verdicts.append(compare_batches(ours, counts, size, run.list_order))
    whole = figure is not None and len(correct) == figure.rows and run.list_order == "as given"
    if figure is not None and figure.shuffle_candidate is not None and whole:
        order = caffe_shuffle(len(correct), figure.shuffle_candidate)
        ours = batch_counts(correct, size, len(counts), order)
        name = f"permuted by Caffe's shuffle, seed {figure.shuffle_candidate}"
        verdicts.append(compare_batches(ours, counts, size, name))
    return tuple(verdicts)


def _why_not(run: RunResult, log: TestLog, counts: tuple[int, ...]) -> str:
    """Why a log cannot be compared with a run."""
    size = log.batch_size or run.batch_size
    return (
        f"the log has {len(counts)} batches of {size} images and the run read {len(run.images):,} images in "
        f"{len(run.batches)} batches of {run.batch_size}; run protocol published with the log's batches, or full"
    )


def _search(run: RunResult, log: TestLog | None, counts: tuple[int, ...]) -> SeedSearch:
    if log is None:
        raise DataError(
            "search_seeds=True: goes with the log whose order is searched; add log=",
            option="search_seeds log",
        )
    if run.list_order != "as given":
        raise DataError(
            f"search_seeds=True: the run read its list {run.list_order}; run it in the list's order",
            option="search_seeds",
        )
    try:
        return search_seed(run.images.correct, counts, log.batch_size or run.batch_size)
    except ValueError as error:
        raise DataError(
            f"search_seeds=True: {error}; run protocol full on the whole list", option="search_seeds"
        ) from error


def _against_other(run: RunResult, other: RunResult) -> McNemar:
    places = {name: place for place, name in enumerate(other.images.names.tolist())}
    pairs = [(mine, places[name]) for mine, name in enumerate(run.images.names.tolist()) if name in places]
    if not pairs:
        raise DataError("the two runs share no image by name; give two runs over one list")
    mine, theirs = (np.array(column) for column in zip(*pairs, strict=True))
    return mcnemar(run.images.correct[mine], other.images.correct[theirs])


def report_values(report: Report) -> dict[str, Any]:
    """The report as a dictionary for JSON; the images themselves stay in the run's table."""
    run, figure = report.run, report.figure
    about = {name: value for name, value in run.to_dict().items() if name != "pictures"}
    interval = wilson(run.correct, run.count)
    as_published = figure and {
        **dataclasses.asdict(figure),
        "count": figure.count,
        "accuracy": figure.accuracy,
        "interval": dataclasses.asdict(figure.interval),
        "always_high": figure.always_high,
    }
    return {
        "run": about,
        "warnings": list(report.warnings),
        "protocol_accuracy": {
            "correct": run.correct,
            "count": run.count,
            "value": run.correct / run.count if run.count else None,
            "interval": dataclasses.asdict(interval) if interval else None,
        },
        "metrics": dataclasses.asdict(report.metrics),
        "published": as_published,
        "compatibility": dataclasses.asdict(report.compatibility) if report.compatibility else None,
        "log": report.log and {"file": report.log.file, "counts": list(report.log_counts)},
        "verdicts": [dataclasses.asdict(verdict) for verdict in report.verdicts],
        "not_compared": report.not_compared or None,
        "seed_search": report.seeds and {**dataclasses.asdict(report.seeds), "found": report.seeds.found},
        "mcnemar": report.mcnemar and {"against": report.other_name, **dataclasses.asdict(report.mcnemar)},
    }


def percent(value: float) -> str:
    """A share in percent, as the tables show it."""
    return f"{100 * value:.2f} %"


def _range(interval: Interval | None) -> str:
    return f"{100 * interval.low:.1f}–{100 * interval.high:.1f} %" if interval else ""


def accuracy_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """The accuracy as the protocol counts it, the published one and that of always answering high.

    Each row is name, value, right answers of all, and 95 % Wilson interval.
    """
    run, figure = report.run, report.figure
    value = percent(run.correct / run.count) if run.count else "no image"
    interval = _range(wilson(run.correct, run.count))
    rows = [("this run", value, f"{run.correct:,} / {run.count:,}", interval)]
    if figure:
        counted = f"{figure.correct:,} / {figure.count:,}"
        rows.append(("published", percent(figure.accuracy), counted, _range(figure.interval)))
        counted = f"{figure.high_rows:,} / {figure.rows:,}"
        rows.append(("always “high”, whole val list", percent(figure.always_high), counted, ""))
    return rows


def figure_rows(metrics: Metrics) -> list[tuple[str, str, str]]:
    """Name, value, and interval or the reason why there is no value, of each of `FIGURES`."""

    def row(name: str, measured: Measured, is_share: bool) -> tuple[str, str, str]:
        if measured.value is None:
            return name, "–", measured.reason
        value = percent(measured.value) if is_share else f"{measured.value:.6g}"
        return name, value, _range(measured.interval)

    return [row(name, getattr(metrics, field), is_share) for name, field, is_share in FIGURES]


def confusion_rows(metrics: Metrics) -> list[tuple[str, str, str]]:
    """Label, and the images answered low and high."""
    (low, wrong_low), (wrong_high, high) = metrics.confusion
    return [("0, low", f"{low:,}", f"{wrong_low:,}"), ("1, high", f"{wrong_high:,}", f"{high:,}")]
