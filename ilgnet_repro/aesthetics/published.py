"""The figures published for ILGNet, as in its authors' logs, and how ours compares."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import IlgnetError
from ..intervals import Interval, wilson
from .proportions import Compatibility, compare_proportions

SOURCE = "logs of `caffe test` in github BestiVictory/ILGnet at commit eb29754"


@dataclass(frozen=True)
class PublishedFigure:
    """One published accuracy with what it was measured on.

    ``rows`` and ``high_rows`` describe the whole released val list, of which the run read only the first
    ``iterations * batch_size`` images of its database. ``shuffle_candidate`` is the one seed of Caffe's
    shuffle under which the log's batches follow the labels (docs/reproducing.md has the evidence: a
    probability of 1 in 300 of coincidence); None where no seed is clearly best.
    """

    dataset: str
    correct: int
    batch_size: int
    iterations: int
    loss: float
    rows: int
    high_rows: int
    shuffle_candidate: int | None = None
    source: str = SOURCE

    @property
    def count(self) -> int:
        """Images the figure was measured on."""
        return self.iterations * self.batch_size

    @property
    def accuracy(self) -> float:
        return self.correct / self.count

    @property
    def interval(self) -> Interval:
        """95 % Wilson interval of the accuracy."""
        interval = wilson(self.correct, self.count)
        assert interval is not None
        return interval

    @property
    def always_high(self) -> float:
        """Accuracy of answering "high" to every image of the whole val list."""
        return self.high_rows / self.rows

    @property
    def full_iterations(self) -> int:
        """Batches that read every image at least once."""
        return -(-self.rows // self.batch_size)

    @property
    def counted_twice(self) -> int:
        """Images that such a run reads twice, because the database wraps to its start."""
        return self.full_iterations * self.batch_size - self.rows


PUBLISHED = {
    "ava1": PublishedFigure("ava1", 2042, 50, 50, 0.428242, 20_000, 16_000, shuffle_candidate=1164),
    "ava2": PublishedFigure("ava2", 2052, 48, 50, 0.381667, 25_553, 12_722),
}

# Of AVA2's 25,553 val images this many are in AVA1's train list.
AVA2_VAL_IN_AVA1_TRAIN = 23_768


def published(dataset: str) -> PublishedFigure:
    """The published figure of ``ava1`` or ``ava2``; raises IlgnetError for any other name."""
    try:
        return PUBLISHED[dataset]
    except KeyError:
        raise IlgnetError(f"{dataset}: no figure was published for it; use ava1 or ava2") from None


def compare_with_published(dataset: str, correct: int, count: int) -> Compatibility | None:
    """Whether ``correct`` of ``count`` could be the published accuracy; None where ``count`` is 0."""
    figure = published(dataset)
    return compare_proportions(correct, count, figure.correct, figure.count)
