"""All that a report shows: a run's figures beside the published one, the authors' log and another run."""

from __future__ import annotations

import base64
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import DataError
from ..reading.image_list import picture_path
from ..reading.images import decode_file
from .author_logs import TestLog
from .intervals import Compatibility, McNemar, mcnemar, wilson
from .labelled_images import StoredPictures
from .metrics import Metrics, evaluate
from .published import PUBLISHED, PublishedFigure, compare_with_published
from .results import RunResult
from .shuffle import caffe_shuffle
from .verdict import Verdict, batch_counts, compare_batches

Pictures = Callable[[str], "np.ndarray | None"]
"""Gives a listed picture as (H, W, 3) BGR uint8, or None if it has none."""

THUMBNAIL_SIDE = 160
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
    other_name: str
    mcnemar: McNemar | None
    warnings: tuple[str, ...]


def build_report(
    run: RunResult, log: TestLog | None = None, other: RunResult | None = None, other_name: str = "other run"
) -> Report:
    """Work out all figures of ``run``, beside the authors' ``log`` and an ``other`` run where given.

    Raises DataError if the other run shares no picture with this one.
    """
    pictures = run.pictures
    figure = PUBLISHED.get(run.dataset)
    warnings = list(run.warnings)
    if run.random_weights:
        warnings.insert(0, RANDOM_WEIGHTS)
    log_counts = log.counts() if log else ()
    return Report(
        run=run,
        metrics=evaluate(pictures.probability, pictures.labels, pictures.loss, pictures.mean_score),
        figure=figure,
        # The figure of random weights is not a figure of ILGNet, and must not look like one.
        compatibility=(
            compare_with_published(run.dataset, run.correct, run.count)
            if figure and not run.random_weights
            else None
        ),
        log=log,
        log_counts=log_counts,
        verdicts=_verdicts(run, log, log_counts, figure),
        other_name=other_name,
        mcnemar=_against_other(run, other) if other else None,
        warnings=tuple(warnings),
    )


def _verdicts(
    run: RunResult, log: TestLog | None, counts: tuple[int, ...], figure: PublishedFigure | None
) -> tuple[Verdict, ...]:
    """The run beside the log in list order, and in the order of the shuffle that is the log's candidate."""
    if log is None or not counts:
        return ()
    size = log.batch_size or run.batch_size
    correct = run.pictures.correct
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


def _against_other(run: RunResult, other: RunResult) -> McNemar:
    places = {name: place for place, name in enumerate(other.pictures.names.tolist())}
    pairs = [(mine, places[name]) for mine, name in enumerate(run.pictures.names.tolist()) if name in places]
    if not pairs:
        raise DataError("the two runs share no picture by name; give two runs over one list")
    mine, theirs = (np.array(column) for column in zip(*pairs, strict=True))
    return mcnemar(run.pictures.correct[mine], other.pictures.correct[theirs])


def report_values(report: Report) -> dict[str, Any]:
    """The report as a dictionary that JSON can hold; the pictures themselves stay in the run's table."""
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
        "mcnemar": report.mcnemar and {"against": report.other_name, **dataclasses.asdict(report.mcnemar)},
    }


def folder(root: str | os.PathLike[str]) -> Pictures:
    """Listed pictures as files under ``root``."""

    def read(name: str) -> np.ndarray | None:
        import cv2

        return decode_file(picture_path(root, name), cv2.IMREAD_COLOR)

    return read


def stored(database: StoredPictures) -> Pictures:
    """Listed pictures as rows of an LMDB."""
    rows = {name: row for row, name in enumerate(database.names)}

    def read(name: str) -> np.ndarray | None:
        try:
            return np.ascontiguousarray(database.picture(rows[name]))
        except (KeyError, DataError):
            return None

    return read


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """One picture of the page; ``data`` is a base64 JPEG, empty where the picture could not be read."""

    name: str
    label: int
    probability: float
    data: str


def thumbnails(
    report: Report, pictures: Pictures, each: int = 8
) -> tuple[tuple[str, tuple[Thumbnail, ...]], ...]:
    """The pictures scored highest and lowest, and the worst mistakes, with a title for each row."""
    rows = report.run.pictures
    order = np.argsort(-rows.probability, kind="stable")
    wrong = np.flatnonzero(~rows.correct)
    worst = wrong[np.argsort(-np.abs(rows.probability[wrong] - 0.5), kind="stable")]
    groups: Sequence[tuple[str, np.ndarray]] = (
        ("Scored highest", order[:each]),
        ("Scored lowest", order[::-1][:each]),
        ("Worst mistakes", worst[:each]),
    )
    return tuple(
        (
            title,
            tuple(
                Thumbnail(
                    str(rows.names[k]),
                    int(rows.labels[k]),
                    float(rows.probability[k]),
                    _jpeg(pictures(str(rows.names[k]))),
                )
                for k in chosen
            ),
        )
        for title, chosen in groups
    )


def _jpeg(picture: np.ndarray | None) -> str:
    if picture is None:
        return ""
    import cv2

    scale = THUMBNAIL_SIDE / max(picture.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in picture.shape[1::-1])
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return base64.b64encode(encoded.tobytes()).decode()
