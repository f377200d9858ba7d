"""Mean scores and vote counts beside a partition, so that regression and EMD do not need AVA.txt."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..caffe.expected_kind import naming_kind
from ..errors import DataError
from ..files import atomic_path, open_input
from ..reading.arrays import load_npz
from .ava import SCORES, AvaTable
from .ava_partition import Partition

SPLITS = ("train", "val")
_VOTES = [f"votes_{score}" for score in SCORES]
_HEADER = ["picture", "split", "label", "mean", "std", *_VOTES]


@dataclass(frozen=True)
class ScoreTable:
    """``ids`` (N,), ``in_val`` (N,) bool, ``labels`` (N,) uint8, ``means`` and ``stds`` (N,) float64,
    ``votes`` (N, 10) int32: the train list in its order, then the val list."""

    ids: np.ndarray
    in_val: np.ndarray
    labels: np.ndarray
    means: np.ndarray
    stds: np.ndarray
    votes: np.ndarray

    @property
    def distributions(self) -> np.ndarray:
        """Share of the votes for each score 1 to 10, float64 (N, 10)."""
        shares: np.ndarray = self.votes / self.votes.sum(axis=1, keepdims=True)
        return shares


def scores_of(partition: Partition, table: AvaTable) -> ScoreTable:
    """The scores of every image of the partition, in the order of its lists."""
    rows = np.concatenate([partition.train.rows, partition.val.rows])
    part = table.take(rows)
    in_val = np.arange(len(rows)) >= len(partition.train)
    labels = np.concatenate([partition.train.labels, partition.val.labels])
    return ScoreTable(part.ids, in_val, labels, part.means, part.stds, part.votes.astype(np.int32))


def write_scores(scores: ScoreTable, path: str | os.PathLike[str]) -> None:
    """Write as CSV or NPZ, by the file's ending. Raises DataError for another ending."""
    suffix = Path(path).suffix
    if suffix not in (".csv", ".npz"):
        raise DataError(f"{path}: unknown kind of scores file; end it in .csv or .npz")
    with atomic_path(path) as temporary:
        if suffix == ".npz":
            np.savez_compressed(temporary, **vars(scores))
            return
        with open(temporary, "w", encoding="ascii", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_HEADER)
            for image, in_val, label, mean, std, votes in zip(*vars(scores).values(), strict=True):
                # repr of a float is the shortest text that reads back as the same number.
                numbers = [repr(float(mean)), repr(float(std)), *votes.tolist()]
                writer.writerow([f"{image}.jpg", SPLITS[int(in_val)], label, *numbers])


def read_scores(path: str | os.PathLike[str]) -> ScoreTable:
    """Read what write_scores wrote. Raises DataError (with the line, for a CSV) if it is not that."""
    try:
        return _read_npz(path) if Path(path).suffix == ".npz" else _read_csv(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_npz(path: str | os.PathLike[str]) -> ScoreTable:
    try:
        arrays = load_npz(path)
        table = ScoreTable(**{name: arrays[name] for name in ScoreTable.__dataclass_fields__})
    except (KeyError, ValueError, DataError) as error:
        raise DataError(
            f"{path}: not a scores file ({str(error).splitlines()[0]}); write it again"
        ) from error
    count = table.ids.shape[:1]
    if any(a.shape != count for n, a in vars(table).items() if n != "votes") or table.votes.shape != (
        *count,
        10,
    ):
        raise DataError(f"{path}: its columns differ in length; write it again")
    return table


def _read_csv(path: str | os.PathLike[str]) -> ScoreTable:
    rows = []
    with open_input(path, "r", encoding="ascii", errors="backslashreplace", newline="") as file:
        reader = csv.reader(file)
        if next(reader, None) != _HEADER:
            wrong = DataError(f"{path}:1: not the header of a scores file; it is {','.join(_HEADER[:5])},…")
            raise naming_kind(wrong, path, "a scores file")
        for line in _lines(reader, path):
            try:
                image, split, label, mean, std, *tally = line
                counts = np.array([int(vote) for vote in tally], np.int32)
                identity = int(image.removesuffix(".jpg"))
                if len(counts) != len(SCORES) or not 0 <= identity < 1 << 63 or label not in ("0", "1"):
                    raise ValueError
                rows.append((identity, SPLITS.index(split), int(label), float(mean), float(std), counts))
            except (ValueError, OverflowError):
                raise DataError(
                    f"{path}:{reader.line_num}: not image, split, label, mean, std and ten counts"
                ) from None
    if not rows:
        raise DataError(f"{path}: no rows below the header")
    ids, in_val, labels, means, stds, votes = zip(*rows, strict=True)
    return ScoreTable(
        np.array(ids, np.int64),
        np.array(in_val, bool),
        np.array(labels, np.uint8),
        np.array(means),
        np.array(stds),
        np.stack(votes),
    )


def _lines(reader: Any, path: str | os.PathLike[str]) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: {error}; give a scores file") from error
