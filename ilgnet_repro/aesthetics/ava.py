"""AVA.txt: one row per image, with the ten vote counts from which everything else is computed.

Columns, separated by spaces: index, image id, the counts of the votes 1 to 10, two semantic tags,
challenge id (Murray, Marchesotti, Perronnin: AVA, CVPR 2012).
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..caffe.expected_kind import naming_kind
from ..errors import DataError
from ..files import open_input

COLUMNS = 15
SCORES = np.arange(1, 11, dtype=np.int64)
_LONGEST_LINE = 1024
_LARGEST = 2**31 - 1  # every number fits 32 bits, so the sums below are exact


@dataclass(frozen=True)
class AvaRow:
    """One image: its id, the counts of the votes 1 to 10, two tags (0 = none) and its challenge."""

    id: int
    votes: tuple[int, ...]
    tags: tuple[int, int]
    challenge: int

    @property
    def mean(self) -> float:
        """Mean score, 1 to 10."""
        return sum(score * count for score, count in enumerate(self.votes, 1)) / sum(self.votes)

    @property
    def std(self) -> float:
        """Standard deviation of the votes themselves (divided by their number, not one less)."""
        count = sum(self.votes)
        first = sum(score * votes for score, votes in enumerate(self.votes, 1))
        second = sum(score * score * votes for score, votes in enumerate(self.votes, 1))
        return math.sqrt(count * second - first * first) / count

    @property
    def distribution(self) -> tuple[float, ...]:
        """Share of the votes for each score 1 to 10; sums to 1."""
        count = sum(self.votes)
        return tuple(votes / count for votes in self.votes)


@dataclass(frozen=True)
class AvaTable:
    """All rows as columns, 60 bytes per image: ``ids`` (N,), ``votes`` (N, 10), ``tags`` (N, 2),
    ``challenges`` (N,), each int32 or int64, in the order of the file; ``file`` is for messages."""

    file: str
    ids: np.ndarray
    votes: np.ndarray
    tags: np.ndarray
    challenges: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: int) -> AvaRow:
        """The image of one row (0 = the first)."""
        first, second = self.tags[index].tolist()
        votes = tuple(self.votes[index].tolist())
        return AvaRow(int(self.ids[index]), votes, (first, second), int(self.challenges[index]))

    @property
    def counts(self) -> np.ndarray:
        """Number of votes of each image, int64 (N,)."""
        counts: np.ndarray = self.votes.sum(axis=1, dtype=np.int64)
        return counts

    @property
    def totals(self) -> np.ndarray:
        """Sum of the votes' scores of each image, int64 (N,): the mean score is totals / counts."""
        return self.votes @ SCORES

    @property
    def means(self) -> np.ndarray:
        """Mean score of each image, float64 (N,)."""
        means: np.ndarray = self.totals / self.counts
        return means

    @property
    def stds(self) -> np.ndarray:
        """Standard deviation of each image's votes, float64 (N,)."""
        counts = self.counts
        # In float64 from here: with 2^31 votes the product would overflow 64 bits.
        variance = (self.votes @ SCORES**2) / counts - self.means**2
        stds: np.ndarray = np.sqrt(np.maximum(variance, 0.0))
        return stds

    @property
    def distributions(self) -> np.ndarray:
        """Share of the votes for each score, float64 (N, 10); rows sum to 1."""
        shares: np.ndarray = self.votes / self.counts[:, None]
        return shares

    def take(self, rows: np.ndarray) -> AvaTable:
        """The given rows (indices or a mask) as a new table."""
        return AvaTable(self.file, self.ids[rows], self.votes[rows], self.tags[rows], self.challenges[rows])

    def without(self, ids: set[int]) -> AvaTable:
        """The table without the images of these ids (missing or corrupt ones, say)."""
        return self.take(~np.isin(self.ids, np.fromiter(ids, np.int64, len(ids))))


def _numbers(line: bytes) -> list[int]:
    """The 15 numbers of a line; ValueError with the reason otherwise."""
    fields = line.split()
    if len(fields) != COLUMNS:
        raise ValueError(
            f"{len(fields)} columns instead of {COLUMNS} (index, id, ten vote counts, two tags, challenge)"
        )
    for column, field in enumerate(fields, 1):
        # bytes.isdigit is ASCII only; int() alone would take signs, underscores and other digits.
        if not field.isdigit() or len(field) > 10 or int(field) > _LARGEST:
            shown = field[:20].decode("ascii", "backslashreplace")
            raise ValueError(f"column {column} is {shown!r}; an integer from 0 to {_LARGEST} is needed")
    numbers = [int(field) for field in fields]
    if not any(numbers[2:12]):
        raise ValueError(f"image {numbers[1]} has no votes, so no mean score; remove the row")
    return numbers


def _lines(path: str | os.PathLike[str]) -> Iterator[list[int]]:
    """The numbers of each line; line k of the file is item k - 1, since blank lines are allowed only at its end."""
    blank = 0
    try:
        with open_input(path) as file:
            number = 0
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if line.isspace():
                    blank = blank or number
                    continue
                if blank:
                    wrong = DataError(f"{path}:{blank}: blank line between rows; remove it")
                    raise naming_kind(wrong, path, "AVA.txt")
                if len(line) == _LONGEST_LINE:
                    wrong = DataError(f"{path}:{number}: longer than {_LONGEST_LINE} bytes; not an AVA.txt")
                    raise naming_kind(wrong, path, "AVA.txt")
                try:
                    yield _numbers(line)
                except ValueError as error:
                    wrong = DataError(f"{path}:{number}: {error}")
                    raise naming_kind(wrong, path, "AVA.txt") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of AVA.txt") from error


def iter_ava(path: str | os.PathLike[str]) -> Iterator[AvaRow]:
    """Each row of AVA.txt in turn, in constant memory.

    Raises DataError naming file and line at the first row that is not 15 integers with a vote.
    """
    for numbers in _lines(path):
        yield AvaRow(numbers[1], tuple(numbers[2:12]), (numbers[12], numbers[13]), numbers[14])


def read_ava(path: str | os.PathLike[str]) -> AvaTable:
    """The whole of AVA.txt as arrays.

    Raises DataError as iter_ava does, and for an empty file or an image that has two rows.
    """
    flat = array("i")
    for numbers in _lines(path):
        flat.extend(numbers[1:])
    if not flat:
        raise DataError(f"{path}: no rows; give the path of AVA.txt")
    table = np.frombuffer(flat, dtype=np.int32).reshape(-1, COLUMNS - 1)
    ids = table[:, 0].astype(np.int64)
    order = np.argsort(ids, kind="stable")
    twice = np.flatnonzero(np.diff(ids[order]) == 0)
    if twice.size:
        first, second = order[twice[0]] + 1, order[twice[0] + 1] + 1
        raise DataError(
            f"{path}:{second}: image {ids[second - 1]} is already at line {first}; remove one of them"
        )
    return AvaTable(str(path), ids, table[:, 1:11], table[:, 11:13], table[:, 13])
