"""PyTorch datasets over LMDBs, list files and folders: float32 pictures (channels, height, width) and labels.

All of them may be handed to worker processes, forked or spawned. Where a transform draws, what it draws
depends on ``seed``, ``epoch`` and the row alone, so the number of workers changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..errors import DataError
from .datum import hwc_to_chw
from .image_list import ImageList, picture_path
from .images import read_picture
from .lmdb_read import LmdbReader
from .transforms import Transform

PICTURE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"))

Sample = tuple[torch.Tensor, int]


class _Pictures(Dataset[Sample]):
    """What the map-style datasets share: a transform, and draws that depend on the row alone."""

    def __init__(self, transform: Transform | None, seed: int) -> None:
        self.transform = transform or Transform()
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} has no length")

    def _load(self, index: int) -> tuple[np.ndarray, int]:
        raise TypeError(f"{type(self).__name__} has no rows")

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        picture, label = self._load(index)
        return _sample(picture, label, self.transform, (self.seed, self.epoch, index))


def _sample(picture: np.ndarray, label: int, transform: Transform, drawn_from: tuple[int, ...]) -> Sample:
    rng = np.random.default_rng(drawn_from) if transform.random else None
    return torch.from_numpy(transform(picture, rng)), label


class LmdbDataset(_Pictures):
    """The rows of a Caffe LMDB by number, in Caffe's reading order. Add one to ``epoch`` for fresh draws."""

    def __init__(
        self, path: str | os.PathLike[str], transform: Transform | None = None, seed: int = 0
    ) -> None:
        super().__init__(transform, seed)
        self.reader = LmdbReader(path)

    def __len__(self) -> int:
        return len(self.reader)

    def _load(self, index: int) -> tuple[np.ndarray, int]:
        return self.reader[index].picture(self.transform.colour)

    def key(self, index: int) -> bytes:
        """The key of a row: ``%08d_path``."""
        return self.reader.key(index)


class ListDataset(_Pictures):
    """The pictures of a list file by row, decoded as ``convert_imageset`` would: BGR, or grey where the
    transform's ``colour`` is False; ``size`` is (height, width) to resize to."""

    def __init__(
        self,
        list_file: str | os.PathLike[str],
        root: str | os.PathLike[str] = "",
        transform: Transform | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(transform, seed)
        self.images, self.root, self.size = ImageList(list_file), os.fspath(root), size

    def __len__(self) -> int:
        return len(self.images)

    def _load(self, index: int) -> tuple[np.ndarray, int]:
        row = self.images[index]
        path = picture_path(self.root, row.path)
        return hwc_to_chw(read_picture(path, self.transform.colour is not False, self.size)), row.label


class FolderDataset(_Pictures):
    """The pictures under a folder, sorted by path; the label is the number of the folder they lie in.

    ``classes`` names the sub-folders, sorted, in the order of their labels. A folder without sub-folders
    holds one class, labelled 0. Raises DataError if there are no pictures.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        transform: Transform | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(transform, seed)
        self.folder, self.size = Path(folder), size
        self.classes = tuple(sorted(path.name for path in self.folder.glob("*/"))) or (".",)
        self.rows = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((self.folder / name).rglob("*"))
            if path.suffix.lower() in PICTURE_SUFFIXES
        ]
        if not self.rows:
            raise DataError(f"{folder}: holds no pictures; give a folder of pictures, or one a class")

    def __len__(self) -> int:
        return len(self.rows)

    def _load(self, index: int) -> tuple[np.ndarray, int]:
        path, label = self.rows[index]
        return hwc_to_chw(read_picture(str(path), self.transform.colour is not False, self.size)), label


class LmdbIterable(IterableDataset[Sample]):
    """The rows of a Caffe LMDB as a Data layer reads them: in key order, on from the first after the last.

    ``rows`` is how many to read in all (default: each once; more wraps around), ``endless`` never stops,
    ``start`` skips rows first. Of several ranks, rank r of ``world`` gets rows r, r + world, …, as Caffe's
    solvers do. With a DataLoader's ``batch_size`` given here too, its workers take whole batches in turn, so
    that the loader's order is Caffe's for any number of workers. No row is read twice or lost.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        transform: Transform | None = None,
        *,
        rows: int | None = None,
        endless: bool = False,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        batch_size: int = 1,
        seed: int = 0,
    ) -> None:
        if not 0 <= rank < world:
            raise DataError(f"rank {rank} of {world}: is from 0 to world - 1")
        if batch_size < 1 or start < 0 or (rows is not None and rows < 0):
            raise DataError(
                f"rows {rows}, start {start}, batch_size {batch_size}: cannot be negative, or 0 a batch"
            )
        self.reader = LmdbReader(path)
        self.transform = transform or Transform()
        self.rows = None if endless else len(self.reader) if rows is None else rows
        self.start, self.rank, self.world = start, rank, world
        self.batch_size, self.seed = batch_size, seed

    def __len__(self) -> int:
        if self.rows is None:
            raise TypeError("an endless dataset has no length")
        return len(range(self.rank, self.rows, self.world))

    def positions(self) -> Iterator[int]:
        """The places in the whole stream of the rows that are this rank's and this worker's."""
        worker = get_worker_info()
        workers, own = (worker.num_workers, worker.id) if worker else (1, 0)
        numbers = count() if self.rows is None else range(len(self))
        for number in numbers:
            if number // self.batch_size % workers == own:
                yield self.start + self.rank + number * self.world

    def __iter__(self) -> Iterator[Sample]:
        for position, row in self.reader.along(self.positions()):
            picture, label = row.picture(self.transform.colour)
            yield _sample(picture, label, self.transform, (self.seed, position))
