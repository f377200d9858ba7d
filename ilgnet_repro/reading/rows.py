"""Labelled images by row number, of a list with its folder or of a database: the one way to read a row."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import DataError
from .annotated import Box
from .datum import hwc_to_chw
from .image_list import ImageList, ListRow, find_image, why_missing
from .images import read_image
from .lmdb_read import LmdbReader, is_database, key_name, key_text


class ImageRows(Protocol):
    """Images and labels by row number, from 0, in Caffe's reading order. Safe to read from several threads."""

    def __len__(self) -> int: ...

    def labels(self) -> np.ndarray:
        """The label of each row; no image is read."""
        ...

    def name(self, number: int) -> str:
        """The path of a row's image as its list states it."""
        ...

    def where(self, number: int) -> str:
        """How messages name a row."""
        ...

    def image(self, number: int, colour: bool | None = None) -> tuple[np.ndarray, int]:
        """A row's image as (channels, height, width) and its label; ``colour`` as in ``datum_image``."""
        ...

    def boxes(self, number: int) -> tuple[Box, ...]:
        """The boxes of a row's objects, if it has any."""
        ...


class ListRows:
    """The rows of a list file, their images under ``root``, resized to ``size`` (height, width) if given.

    Without ``root`` an absolute path stands, and others are relative to ``base``. Images are decoded in colour unless
    ``colour`` is False, as Caffe decodes them.
    """

    def __init__(
        self,
        list_file: str | os.PathLike[str],
        root: str | os.PathLike[str] = "",
        size: tuple[int, int] | None = None,
        base: str | os.PathLike[str] = ".",
    ) -> None:
        self.images, self.root, self.size = ImageList(list_file), os.fspath(root), size
        self.base = Path(base)

    def __len__(self) -> int:
        return len(self.images)

    def labels(self) -> np.ndarray:
        return np.fromiter((row.label for row in self.images), np.int64, len(self))

    def name(self, number: int) -> str:
        return self.images[number].path

    def where(self, number: int) -> str:
        """The path of a row's image file."""
        return find_image(self.root, self.name(number), self.base)

    def image(self, number: int, colour: bool | None = None) -> tuple[np.ndarray, int]:
        row = self.images[number]
        image = read_listed_image(row, self.root, colour is not False, self.size, self.base)
        return hwc_to_chw(image), row.label

    def boxes(self, number: int) -> tuple[Box, ...]:
        return ()


def read_listed_image(
    row: ListRow,
    root: str | os.PathLike[str],
    colour: bool = True,
    size: tuple[int, int] | None = None,
    base: str | os.PathLike[str] = ".",
) -> np.ndarray:
    """Decode the image of a list's row as `read_image` does.

    Raises DataError if it cannot be; where the file is missing and the row shows why, that is said.
    """
    path = find_image(root, row.path, base)
    try:
        return read_image(path, colour, size)
    except DataError as error:
        if os.path.lexists(path) or not (why := why_missing(row, root)):
            raise
        raise DataError(f"{path}: no such file; {why}") from error


class DatabaseRows:
    """The rows of a Caffe LMDB, in key order."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.reader = LmdbReader(folder)

    def __len__(self) -> int:
        return len(self.reader)

    def labels(self) -> np.ndarray:
        return np.fromiter((header.label for _, header in self.reader.headers()), np.int64, len(self))

    def name(self, number: int) -> str:
        return key_name(self.reader.key(number))

    def where(self, number: int) -> str:
        return key_text(self.reader.key(number))

    def image(self, number: int, colour: bool | None = None) -> tuple[np.ndarray, int]:
        return self.reader[number].image(colour)

    def boxes(self, number: int) -> tuple[Box, ...]:
        return self.reader[number].boxes()


def open_rows(source: str | os.PathLike[str], root: str | os.PathLike[str] = "") -> ListRows | DatabaseRows:
    """The rows of an LMDB, or of a list file whose images are under ``root``."""
    return DatabaseRows(source) if Path(source).is_dir() or is_database(source) else ListRows(source, root)
