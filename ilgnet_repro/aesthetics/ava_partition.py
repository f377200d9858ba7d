"""Seeded AVA1 and AVA2 partitions, in place of the authors' unseeded programs.

A draw depends on the images, their votes and the seed only: rows are put in the order of their ids
first, and the random stream is the one NumPy promises never to change (RandomState, NEP 19).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..caffe.expected_kind import naming_kind
from ..errors import DataError
from ..files import atomic_path, open_input
from .ava import AvaTable

PUBLISHED_VAL_SIZES = (4_000, 16_000)  # low, high: the class sizes of the authors' AVA1 val
ORDERS = ("class", "shuffled")
BOUNDARY = 5

LISTS = ("train.txt", "val.txt")  # the files of a partition


@dataclass(frozen=True)
class Split:
    """The rows of a table that make one list, in its order, and their labels (uint8; 1 = high quality)."""

    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def class_sizes(self) -> tuple[int, int]:
        """Number of images with label 0 and with label 1."""
        high = int(self.labels.sum())
        return len(self) - high, high


@dataclass(frozen=True)
class Partition:
    """Train and val lists over one table; ``dropped`` training images were within delta of the cut."""

    train: Split
    val: Split
    dropped: int = 0


def is_high(table: AvaTable) -> np.ndarray:
    """Label of each image: True iff its mean score is above 5 (exactly 5 is low). Integers throughout."""
    return table.totals > BOUNDARY * table.counts


def _random(seed: int) -> np.random.RandomState:
    if not 0 <= seed < 2**32:
        raise DataError(f"seed {seed}: out of range; use 0 to {2**32 - 1}")
    return np.random.RandomState(seed)


def _split(rows: np.ndarray, high: np.ndarray, order: str, random: np.random.RandomState) -> Split:
    """The rows in random order, or in random order inside each class with label 0 first."""
    if order not in ORDERS:
        raise DataError(f"order {order!r}: unknown; use {' or '.join(ORDERS)}")
    rows = random.permutation(rows)
    if order == "class":
        rows = rows[np.argsort(high[rows], kind="stable")]
    return Split(rows, high[rows].astype(np.uint8))


def _within(table: AvaTable, delta: float) -> np.ndarray:
    """Whether |mean - 5| < delta, in integers: a mean of 4.9 is not within 0.1 by rounding."""
    if not (math.isfinite(delta) and 0 <= delta < BOUNDARY):
        raise DataError(f"delta {delta}: out of range; use a number from 0 up to, not including, {BOUNDARY}")
    exact = Fraction(str(delta)).limit_denominator(1_000_000)
    distance = np.abs(table.totals - BOUNDARY * table.counts)
    within: np.ndarray = distance * exact.denominator < exact.numerator * table.counts
    return within


def partition_ava1(
    table: AvaTable,
    seed: int,
    *,
    delta: float = 0.0,
    val_sizes: Sequence[int] = PUBLISHED_VAL_SIZES,
    order: str = "class",
) -> Partition:
    """AVA1: all images, cut at a mean score of 5; ``val_sizes`` (low, high) of them at random are val.

    delta drops *training* images with |mean - 5| < delta (those exactly delta away stay); val is drawn
    before that, so it is the same for every delta. ``order``: the authors' lists are sorted by class.
    Raises DataError where a class is too small or an argument is out of range.
    """
    random = _random(seed)
    high = is_high(table)
    by_id = np.argsort(table.ids)
    chosen = []
    for label, size in enumerate(val_sizes):
        pool = by_id[high[by_id] == bool(label)]
        if not 0 <= size <= len(pool):
            raise DataError(
                f"{table.file}: val needs {size} images of label {label}, there are {len(pool)}; "
                "give other val_sizes=",
                option="val_sizes",
            )
        chosen.append(random.permutation(pool)[:size])
    in_val = np.zeros(len(table), bool)
    in_val[np.concatenate(chosen)] = True
    near = _within(table, delta) & ~in_val
    train = by_id[~(in_val | near)[by_id]]
    if not len(train):
        raise DataError(
            f"{table.file}: no training image is left; lower delta= or val_sizes=", option="delta val_sizes"
        )
    return Partition(
        _split(train, high, order, random), _split(by_id[in_val[by_id]], high, order, random), int(near.sum())
    )


def partition_ava2(table: AvaTable, seed: int, *, order: str = "shuffled") -> Partition:
    """AVA2: the lowest tenth (label 0) and the highest tenth (label 1) by mean score, halved at random.

    A tenth is rounded to the nearest whole image (25,553 of 255,529). Images with equal means are
    ranked by id, the lower id lower. Classes are equal overall, not in each half, as in the authors' lists.
    Raises DataError for fewer than five images.
    """
    random = _random(seed)
    tenth = (len(table) + 5) // 10
    if not tenth:
        raise DataError(f"{table.file}: {len(table)} images have no tenth; AVA2 needs at least five")
    # Equal fractions give equal float64 quotients, so ties are true ties.
    ranked = np.lexsort((table.ids, table.means))
    high = np.zeros(len(table), bool)
    high[ranked[-tenth:]] = True
    rows = np.concatenate([ranked[:tenth], ranked[-tenth:]])
    rows = random.permutation(rows[np.argsort(table.ids[rows])])
    return Partition(_split(rows[:tenth], high, order, random), _split(rows[tenth:], high, order, random))


def write_partition(
    partition: Partition, table: AvaTable, folder: str | os.PathLike[str], *, replace: bool = False
) -> tuple[Path, Path]:
    """Write ``train.txt`` and ``val.txt`` (``ID.jpg LABEL`` lines) into the folder: both or neither.

    Raises DataError if one is there already and replace is False.
    """
    target = Path(folder)
    paths = target / LISTS[0], target / LISTS[1]
    for path in paths:
        if path.exists() and not replace:
            raise DataError(f"{path}: is there already; give another out= or force=True", option="out force")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{target}: cannot be made ({error.strerror}); give another out=", option="out"
        ) from error
    with ExitStack() as stack:
        temporaries = [stack.enter_context(atomic_path(path)) for path in paths]
        for temporary, split in zip(temporaries, (partition.train, partition.val), strict=True):
            with open(temporary, "w", encoding="ascii", newline="\n") as file:
                pairs = zip(table.ids[split.rows].tolist(), split.labels.tolist(), strict=True)
                file.writelines(f"{image}.jpg {label}\n" for image, label in pairs)
    return paths


def read_excluded(path: str | os.PathLike[str]) -> set[int]:
    """Ids to leave out, from lines that begin with ``ID`` or ``ID.jpg`` (``partition check --bad`` writes
    such a list). Raises DataError with file and line for any other line."""
    excluded = set()
    try:
        with open_input(path, "r", encoding="ascii", errors="backslashreplace") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                name = line.split()[0].rpartition("/")[2].removesuffix(".jpg")
                if not name.isdecimal() or len(name) > 18:
                    wrong = DataError(
                        f"{path}:{number}: {name[:40]!r} is not an image id; write ID or ID.jpg"
                    )
                    raise naming_kind(wrong, path, "a list of image ids")
                excluded.add(int(name))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return excluded
