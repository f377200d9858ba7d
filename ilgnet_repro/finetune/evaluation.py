"""What a fine-tuned net makes of each val image, and the figures of it with their 95 % intervals."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import IlgnetError
from ..intervals import Interval, bootstrap, wilson
from ..reading.datum import chw_to_hwc
from ..reading.lmdb_labels import label_rows
from ..reading.rows import DatabaseRows
from ..runtime.load import load_caffe
from ..runtime.modes import as_loaded

_BATCH = 32


@dataclass(frozen=True)
class Figure:
    """A figure of the val images; ``interval`` is None where the figure is only compared with."""

    name: str
    value: float
    interval: Interval | None = None


@dataclass(frozen=True)
class Evaluation:
    """The outputs for the val images, in the database's order, and what follows from them.

    ``targets`` and ``outputs`` have a row per image: of classes the shares of the labels and of the net.  ``loss`` says
    how wrong each answer is, ``mistakes`` are the rows that are wrong, the worst first.
    """

    task: str
    names: tuple[str, ...]
    paths: tuple[str, ...]
    targets: np.ndarray
    outputs: np.ndarray
    loss: np.ndarray
    mistakes: tuple[int, ...]
    figures: tuple[Figure, ...]
    recall: tuple[tuple[str, int, int, Interval | None], ...] = ()  # class, right, of, interval
    confusion: np.ndarray | None = None


def evaluate(
    weights: str | os.PathLike[str],
    database: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None,
    task: str,
    names: tuple[str, ...],
    values: tuple[float, ...],
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Run the net of a file on every row of a database once.

    ``labels`` is the database of float labels, None for classes; ``names`` are the classes, ``values`` the scores of a
    distribution.
    """
    rows = DatabaseRows(database)
    paths = tuple(rows.name(number) for number in range(len(rows)))
    outputs = np.concatenate(list(_outputs(weights, rows, "score" if task == "score" else "prob", progress)))
    if labels is None:
        return _of_classes(names, paths, rows.labels(), outputs)
    targets = np.stack(list(label_rows(labels))).astype(np.float64)
    if task == "score":
        return _of_scores(paths, targets, outputs)
    return _of_distributions(names, paths, targets, outputs, np.asarray(values))


def _outputs(
    weights: str | os.PathLike[str], rows: DatabaseRows, blob: str, progress: Callable[[int], None]
) -> Iterator[np.ndarray]:
    net = load_caffe(weights)
    name = net.image_input()
    found = next((output for output in net.outputs if output.rstrip("'") == blob), None)
    if found is None:
        raise IlgnetError(
            f"{weights}: has no output {blob!r}; convert it with the deploy.prototxt of the run"
        )
    for start in range(0, len(rows), _BATCH):
        numbers = range(start, min(start + _BATCH, len(rows)))
        images = [np.ascontiguousarray(chw_to_hwc(rows.image(number)[0])) for number in numbers]
        with torch.inference_mode(), as_loaded(net):
            output = net({name: net.prepare(images)})[found]
        yield output.reshape(len(numbers), -1).double().numpy()
        progress(numbers.stop)


# ---------------------------------------------------------------------- classes


def _of_classes(
    names: tuple[str, ...], paths: tuple[str, ...], labels: np.ndarray, outputs: np.ndarray
) -> Evaluation:
    rows = np.arange(len(labels))
    own = outputs[rows, labels]
    others = outputs.copy()
    others[rows, labels] = -np.inf
    right = own > others.max(axis=1)  # a tie is wrong, as in Caffe's Accuracy layer
    called = np.where(right, labels, others.argmax(axis=1))
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (labels, called), 1)
    loss = -np.log(np.maximum(own, np.finfo(np.float32).tiny))
    counts = confusion.sum(axis=1)
    recall = tuple(
        (name, int(confusion[k, k]), int(counts[k]), wilson(int(confusion[k, k]), int(counts[k])))
        for k, name in enumerate(names)
    )
    figures = (
        Figure("accuracy", float(right.mean()), wilson(int(right.sum()), len(right))),
        Figure("accuracy of the most frequent class", float(counts.max() / len(labels))),
        Figure(
            "balanced accuracy", *_figure(lambda drawn: _balanced(labels[drawn], right[drawn]), len(labels))
        ),
        Figure("cross-entropy", *_figure(lambda drawn: float(loss[drawn].mean()), len(labels))),
    )
    wrong = rows[~right]
    mistakes = tuple(int(row) for row in wrong[np.argsort(-loss[wrong], kind="stable")])
    targets = np.eye(len(names))[labels]
    return Evaluation("classes", names, paths, targets, outputs, loss, mistakes, figures, recall, confusion)


def _balanced(labels: np.ndarray, right: np.ndarray) -> float:
    """The mean recall of the classes that are there."""
    counts = np.bincount(labels)
    found = np.bincount(labels, weights=right)
    return float((found[counts > 0] / counts[counts > 0]).mean())


# ---------------------------------------------------------------------- scores


def _of_scores(paths: tuple[str, ...], targets: np.ndarray, outputs: np.ndarray) -> Evaluation:
    loss = np.abs(outputs - targets)[:, 0]
    figures = _score_figures(outputs[:, 0], targets[:, 0])
    return Evaluation("score", ("score",), paths, targets, outputs, loss, _worst(loss), figures)


def _of_distributions(
    names: tuple[str, ...],
    paths: tuple[str, ...],
    targets: np.ndarray,
    outputs: np.ndarray,
    values: np.ndarray,
) -> Evaluation:
    # The area between the two cumulative distributions, on the scale of the scores.
    loss = (np.abs(np.cumsum(outputs - targets, axis=1))[:, :-1] * np.abs(np.diff(values))).sum(axis=1)
    figures = (
        Figure("earth mover's distance", *_figure(lambda drawn: float(loss[drawn].mean()), len(loss))),
        *_score_figures(outputs @ values, targets @ values),
    )
    return Evaluation("distribution", names, paths, targets, outputs, loss, _worst(loss), figures)


def _worst(loss: np.ndarray) -> tuple[int, ...]:
    return tuple(int(row) for row in np.argsort(-loss, kind="stable"))


def _score_figures(predicted: np.ndarray, target: np.ndarray) -> tuple[Figure, ...]:
    error, count = predicted - target, len(target)
    return (
        Figure("mean absolute error", *_figure(lambda drawn: float(np.abs(error[drawn]).mean()), count)),
        Figure("mean absolute error of the mean score", float(np.abs(target - target.mean()).mean())),
        Figure(
            "root mean square error",
            *_figure(lambda drawn: float(np.sqrt((error[drawn] ** 2).mean())), count),
        ),
        Figure(
            "linear correlation", *_figure(lambda drawn: _correlation(predicted[drawn], target[drawn]), count)
        ),
        Figure(
            "rank correlation",
            *_figure(lambda drawn: _rank_correlation(predicted[drawn], target[drawn]), count),
        ),
    )


def _figure(figure: Callable[[np.ndarray], float], count: int) -> tuple[float, Interval | None]:
    """A figure with its interval; 0 where the images do not define it."""
    value = figure(np.arange(count))
    return 0.0 if math.isnan(value) else value, bootstrap(figure, count)


def _correlation(predicted: np.ndarray, target: np.ndarray) -> float:
    """Pearson's; NaN where one of the two is constant."""
    if np.ptp(predicted) == 0 or np.ptp(target) == 0:
        return math.nan
    return float(np.corrcoef(predicted, target)[0, 1])


def _rank_correlation(predicted: np.ndarray, target: np.ndarray) -> float:
    from scipy.stats import rankdata

    return _correlation(rankdata(predicted), rankdata(target))
