"""A protocol's run: one row of results per image, batch by batch, so that it can be resumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, IlgnetError
from ..reading.parallel import ordered_map
from ..runtime.modes import as_loaded
from ..runtime.runnable import Runnable, run_rows
from .journal import Journal
from .labelled_images import LabelledImages
from .metrics import SMALLEST_PROBABILITY, is_correct
from .protocols import Preparation
from .results import BatchRow, ImageResults, Row, from_rows

Scorer = Callable[[Tensor], Tensor]
"""Takes (N, 3, side, side), returns the probabilities (N, 2) of low and high."""

Cluster = Callable[[Sequence[int]], Iterator[tuple[np.ndarray | None, str]]]
"""Yields both probabilities of each of these rows, in order, or None with the reason."""

_OFF_ONE = 1e-3  # how far from 1 the sum of two float32 (or bfloat16) probabilities may be


@dataclass(frozen=True)
class Outcome:
    """The result of a run; ``bad`` are the images that could not be read, with the reason, each once."""

    images: ImageResults
    batches: tuple[BatchRow, ...]
    bad: tuple[tuple[str, str], ...]


def scorer(net: Runnable, device: str = "cpu") -> Scorer:
    """A net as a Scorer.

    Raises IlgnetError if it has not one input and one output of two probabilities per image.
    """
    inputs = net.inputs_for(net.outputs)
    if len(inputs) != 1 or len(net.outputs) != 1:
        raise IlgnetError(
            f"the net has {len(inputs)} inputs and {len(net.outputs)} outputs;"
            " a deploy net with one each is needed"
        )

    def score(images: Tensor) -> Tensor:
        with torch.inference_mode(), as_loaded(net):
            values = run_rows(net, inputs[0], images.to(device))[net.outputs[0]].float().cpu()
        values = values.reshape(len(images), -1)
        if values.shape[1] != 2 or not bool(((values.sum(1) - 1).abs() < _OFF_ONE).all()):
            raise IlgnetError(
                f"output {net.outputs[0]!r} does not hold two probabilities per image;"
                " give a net that ends in Softmax"
            )
        return values

    return score


@dataclass(frozen=True)
class _Read:
    """One row as it was read: its input, or its probabilities where a cluster made them, or neither with the reason."""

    row: int
    values: np.ndarray | None
    fault: str = ""
    scores: np.ndarray | None = None

    @property
    def is_good(self) -> bool:
        return self.values is not None or self.scores is not None


def run_protocol(
    score: Scorer,
    images: LabelledImages,
    preparation: Preparation,
    batch_size: int,
    *,
    batches: int | None = None,
    journal: Journal | None = None,
    mean_score: Callable[[str], float] = lambda name: math.nan,
    strict: bool = False,
    workers: int | None = None,
    cluster: Cluster | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """Run a protocol over ``images``: ``batches`` from the first row on and over again, or each row once.

    An image that cannot be read is left out, and the next takes its place, as when `convert_imageset` builds
    the database; with ``strict`` it raises DataError. ``journal`` keeps every row visited (NaN for one left
    out); what it has already is not done again, except for a batch it has in part.
    """
    if batch_size < 1 or (batches is not None and batches < 1):
        raise IlgnetError(f"{batches} batches of {batch_size}: must be 1 or more")
    rows: list[Row] = list(journal.rows) if journal else []
    # A batch that is in the journal in part is run again completely: its rows must not depend on the interruption.
    end = _end_of_batches(rows, batch_size)
    in_journal = len(rows) - end
    del rows[end:]
    wanted = None if batches is None else batches * batch_size
    done = len(rows) - sum(math.isnan(row[2]) for row in rows)
    progress(done)
    prepare = preparation.one

    def read(visit: int) -> _Read:
        row = visit % len(images)
        try:
            return _Read(row, prepare(images.image(row)))
        except (DataError, OSError) as error:
            return _Read(row, None, str(error))

    # The journal has no reasons: what it left out is read again for them.
    faults = {
        row[0]: read(visit).fault or "could not be read when the run began"
        for visit, row in enumerate(rows)
        if math.isnan(row[2])
    }
    visits = range(len(rows), len(images)) if wanted is None else count(len(rows))
    stream: Generator[_Read]
    if cluster is not None and isinstance(visits, range):
        stream = _of_cluster(cluster, visits)
    else:
        stream = ordered_map(read, visits, workers)
    while wanted is None or done < wanted:
        batch = list(_take(stream, batch_size, len(images)))
        if not batch:
            break
        good = [one for one in batch if one.is_good]
        for one in batch:
            if not one.is_good:
                if strict:
                    raise DataError(one.fault)
                faults[images.names[one.row]] = one.fault
        fresh = _rows(batch, iter(_scores(score, preparation, good)), images, mean_score)
        rows += fresh
        if not good:
            break
        if journal is not None:
            journal.append(fresh[in_journal:])
            in_journal = max(0, in_journal - len(fresh))
        done += len(good)
        progress(done)
    stream.close()  # its threads end here
    if not done:
        reason = next(iter(faults.values()))
        raise DataError(f"{images.title}: none of its {len(images):,} images can be read: {reason}")
    return Outcome(
        images=from_rows(row for row in rows[: len(images)] if not math.isnan(row[2])),
        batches=tuple(_batch_rows([row for row in rows if not math.isnan(row[2])], batch_size)),
        bad=tuple(faults.items()),
    )


def _end_of_batches(rows: Sequence[Row], batch_size: int) -> int:
    """How many of the rows visited belong to whole batches."""
    good = [index for index, row in enumerate(rows) if not math.isnan(row[2])]
    whole = len(good) // batch_size * batch_size
    return good[whole - 1] + 1 if whole else 0


def _take(stream: Iterator[_Read], batch_size: int, most: int) -> Iterator[_Read]:
    """Rows until ``batch_size`` of them could be read, or none of so many in a row as the list has."""
    good = failed = 0
    for one in stream:
        yield one
        failed = 0 if one.is_good else failed + 1
        good += one.is_good
        if good == batch_size or failed == most:
            return


def _of_cluster(cluster: Cluster, rows: range) -> Generator[_Read]:
    for row, (scores, fault) in zip(rows, cluster(rows), strict=True):
        yield _Read(row, None, fault, scores)


def _scores(score: Scorer, preparation: Preparation, good: Sequence[_Read]) -> np.ndarray:
    """The probabilities (N, 2) of a batch."""
    if scored := [one.scores for one in good if one.scores is not None]:
        return np.stack(scored)
    return batch_scores(score, preparation, [one.values for one in good if one.values is not None])


def batch_scores(score: Scorer, preparation: Preparation, values: Sequence[np.ndarray]) -> np.ndarray:
    """The probabilities (N, 2) of prepared images, averaged over their views."""
    if not values:
        return np.empty((0, 2), np.float32)
    total = [score(torch.from_numpy(view)).numpy() for view in preparation.views(np.stack(values))]
    return np.stack(total).mean(axis=0, dtype=np.float32) if len(total) > 1 else total[0]


def _rows(
    batch: Sequence[_Read],
    scores: Iterator[np.ndarray],
    images: LabelledImages,
    mean_score: Callable[[str], float],
) -> list[Row]:
    rows: list[Row] = []
    for one in batch:
        name, label = images.names[one.row], int(images.labels[one.row])
        if not one.is_good:
            rows.append((name, label, math.nan, math.nan, math.nan))
            continue
        both = next(scores)
        # Not 1 − p: a float32 p near 1 has lost the digits of 1 − p.
        loss = -math.log(max(float(both[label]), SMALLEST_PROBABILITY))
        rows.append((name, label, min(float(both[1]), 1.0), loss, mean_score(name)))
    return rows


def _batch_rows(rows: Sequence[Row], batch_size: int) -> Iterator[BatchRow]:
    for index, start in enumerate(range(0, len(rows), batch_size)):
        batch = rows[start : start + batch_size]
        right = is_correct(np.array([row[2] for row in batch]), np.array([row[1] for row in batch]))
        yield BatchRow(index, len(batch), int(right.sum()), math.fsum(row[3] for row in batch) / len(batch))
