"""Mean images: computed over a database as ``compute_image_mean`` does, read and written."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..caffe.blob import read_blob, write_blob
from ..caffe.kinds import Kind, kind_of
from ..errors import DataError, FormatError
from ..files import atomic_file
from .arrays import load_npy
from .lmdb_read import LmdbReader, Row, key_text
from .parallel import ordered_map


@dataclass(frozen=True)
class MeanImage:
    """The mean of a database's images, float32 (channels, height, width), and their number."""

    image: np.ndarray
    rows: int

    @property
    def channels(self) -> tuple[float, ...]:
        """The mean of each channel."""
        return tuple(float(mean) for mean in self.image.mean(axis=(1, 2), dtype=np.float64))


def compute_mean(
    database: str | os.PathLike[str],
    *,
    caffe_rounding: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, rows: None,
) -> MeanImage:
    """Compute the mean image of all rows in one streaming pass.

    Sums are exact: 64-bit integers for bytes, float64 for ``float_data``. Caffe sums in float32, which is the
    same until a pixel's sum exceeds 2**24 (at row 65,794 or later) and is rounded from there on;
    ``caffe_rounding`` sums in Caffe's order and precision: the result is bitwise equal for any number of rows.
    Raises DataError, with the key, for a row that cannot be decoded or differs in size from the first.
    """
    reader = LmdbReader(database)
    rows = len(reader)
    if not rows:
        raise DataError(f"{database}: has no rows; build it again")
    total: np.ndarray | None = None
    for done, (key, image) in enumerate(ordered_map(_decode, reader, workers), 1):
        if total is None:
            exact = np.int64 if image.dtype == np.uint8 else np.float64
            total = np.zeros(image.shape, np.float32 if caffe_rounding else exact)
        if image.shape != total.shape:
            sizes = ["x".join(map(str, shape)) for shape in (image.shape, total.shape)]
            raise DataError(
                f"{database}: {key_text(key)} is {sizes[0]}, the first row {sizes[1]}; build it with a resize"
            )
        np.add(total, image, out=total, casting="unsafe")
        progress(done, rows)
    assert total is not None
    if caffe_rounding:
        return MeanImage(total / np.float32(rows), rows)
    return MeanImage((total.astype(np.float64) / rows).astype(np.float32), rows)


def _decode(row: Row) -> tuple[bytes, np.ndarray]:
    return row.key, row.image()[0]


def read_mean(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a mean image, float32 (channels, height, width), from a binaryproto or npy file, recognized by content.

    Raises DataError if an npy file has no numbers of that shape, FormatError if a file is not a binaryproto.
    """
    if _is_npy(path):
        mean = load_npy(path)
        if mean.dtype.kind not in "fiu":
            raise DataError(f"{path}: has type {mean.dtype}, not numbers; give a mean file")
    else:
        mean = read_blob(path)
    shape = mean.shape
    while mean.ndim > 3 and mean.shape[0] == 1:
        mean = mean[0]
    if mean.ndim != 3:
        raise DataError(f"{path}: has shape {shape}; a mean image is (channels, height, width)")
    return np.ascontiguousarray(mean, np.float32)


def _is_npy(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an npy file, or may be a damaged one."""
    named = Path(path).suffix == ".npy"
    try:
        kind = kind_of(path)
    except FormatError:
        return named
    return kind is Kind.NPY or (named and kind in (Kind.EMPTY, Kind.TEXT, Kind.UNKNOWN))


def write_mean(path: str | os.PathLike[str], mean: np.ndarray) -> None:
    """Write (channels, height, width) as a binaryproto, or as npy if the suffix is ``.npy``."""
    if Path(path).suffix == ".npy":
        with atomic_file(path) as file:
            np.save(file, mean.astype(np.float32), allow_pickle=False)
    else:
        write_blob(path, mean.astype(np.float32)[None])
