"""Mean images: computed over a database as ``compute_image_mean`` does, read and written."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..caffe.blob import read_blob, write_blob
from ..caffe.kinds import Kind, kind_of
from ..caffe.wire import fields
from ..errors import DataError, FormatError
from ..files import atomic_file
from .annotated import datum_field
from .arrays import load_npy
from .lmdb_read import LmdbReader, Row, RowBlock, key_text
from .parallel import ordered_map

BLOCK_ROWS, BLOCK_BYTES = 128, 3 << 20  # summed at a time; a 16-bit sum holds 257 rows
_MOST_EXACT_IN_FLOAT32 = (1 << 24) // 255  # rows
_MOST_IN_32_BITS = (1 << 24) - 1  # rows
_DATA, _ENCODED = 4, 7  # fields of Datum
_LONGEST_AROUND = 64  # bytes of a raw row besides its pixels
_MOST_LABELS, _MOST_LAYOUTS = 4096, 4  # remembered


class _Layout(NamedTuple):
    """Raw rows of one size: the bytes before the pixels, where these stop, and what was seen after them."""

    before: bytes
    stop: int
    shape: tuple[int, ...]
    after: set[bytes]


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

    Sums are exact: integers for bytes, float64 for ``float_data``. Caffe sums in float32, which is the
    same until a pixel's sum exceeds 2**24 (at row 65,794 or later) and is rounded from there on;
    ``caffe_rounding`` sums in Caffe's order and precision: the result is bitwise equal for any number of rows.
    Raises DataError, with the key, for a row that cannot be decoded or differs in size from the first.
    """
    reader = LmdbReader(database)
    rows = len(reader)
    if not rows:
        raise DataError(f"{database}: has no rows; build it again")
    # Sums below 2**24 are the same in float32, in any order.
    in_order = caffe_rounding and rows > _MOST_EXACT_IN_FLOAT32
    sums = _sum(reader, rows, workers, progress, in_order)
    if caffe_rounding and not in_order and sums.has_floats:
        sums = _sum(reader, rows, workers, progress, in_order=True)
    return MeanImage(sums.mean(np.float32 if caffe_rounding else np.float64), rows)


def _sum(
    reader: LmdbReader, rows: int, workers: int | None, progress: Callable[[int, int], None], in_order: bool
) -> _Sums:
    """Return the sums of all rows: exact, or, ``in_order``, in float32 row after row."""
    images = RowImages()
    integers = np.uint32 if rows <= _MOST_IN_32_BITS else np.uint64
    total = _Sums(
        str(reader.path), np.float32 if in_order else integers, np.float32 if in_order else np.float64
    )

    def decoded(block: RowBlock) -> list[tuple[bytes, np.ndarray, int]]:
        """Return images with their number: the sum of a block, or each row's for itself."""
        stack = None if in_order else reader.stacked(block)
        summed = None if stack is None else images.sum(stack)
        if summed is not None:
            return [(block.keys[0], summed, len(block.keys))]
        return [(row.key, images.image(row), 1) for row in reader.rows_of(block)]

    for block in ordered_map(decoded, reader.blocks(BLOCK_ROWS, BLOCK_BYTES), workers, chunk=1):
        for key, image, count in block:
            total.add(key, image, count)
        progress(total.rows, rows)
    return total


class RowImages:
    """The images of rows.  Raw rows that differ from an earlier one in their pixels only are not parsed again."""

    def __init__(self) -> None:
        self._layouts: list[_Layout] = []

    def image(self, row: Row) -> np.ndarray:
        """Return a row's image as `Row.image`.  Raises DataError where the row is damaged."""
        value = row.value
        for layout in self._layouts:
            if value.startswith(layout.before) and value[layout.stop :] in layout.after:
                start = len(layout.before)
                return np.frombuffer(value, np.uint8, layout.stop - start, start).reshape(layout.shape)
        image = row.image()[0]
        if image.dtype == np.uint8:
            self._learn(value, image.shape, key_text(row.key))
        return image

    def sum(self, stack: np.ndarray) -> np.ndarray | None:
        """Return the sum of the images of rows (rows × bytes), uint16, or None where they need to be parsed."""
        for before, stop, shape, after in self._layouts:
            start = len(before)
            if stop > stack.shape[1] or not (stack[:, :start] == np.frombuffer(before, np.uint8)).all():
                continue
            width, ends = stack.shape[1] - stop, stack[:, stop:].tobytes()
            found = {ends[at : at + width] for at in range(0, len(ends), width)} if width else {b""}
            if not found <= after:
                return None
            total: np.ndarray = np.add.reduce(stack[:, start:stop], axis=0, dtype=np.uint16)
            return total.reshape(shape)
        return None

    def _learn(self, value: bytes, shape: tuple[int, ...], where: str) -> None:
        """Remember what is around the pixels of a raw row: of a Datum that holds them in one field."""
        if datum_field(value, where) is not None:
            return
        found = list(fields(value, 0, len(value), where))
        pixels = [field for field in found if field.number == _DATA]
        is_encoded = any(field.number == _ENCODED and field.value for field in found)
        if len(pixels) != 1 or is_encoded or pixels[0].stop - pixels[0].start != prod(shape):
            return
        before, after = value[: pixels[0].start], value[pixels[0].stop :]
        if len(before) + len(after) > _LONGEST_AROUND:
            return
        for layout in self._layouts:
            if layout.before == before:
                if len(layout.after) < _MOST_LABELS:
                    layout.after.add(after)
                return
        if len(self._layouts) < _MOST_LAYOUTS:
            self._layouts.append(_Layout(before, pixels[0].stop, shape, {after}))


class _Sums:
    """Sums of images of one size: of bytes in one type, of floats in another."""

    def __init__(self, database: str, integers: type[np.generic], floats: type[np.generic]) -> None:
        self.database, self.rows, self.has_floats = database, 0, False
        self._integers, self._floats = np.dtype(integers), np.dtype(floats)
        self._totals: dict[np.dtype[Any], np.ndarray] = {}

    def add(self, key: bytes, image: np.ndarray, count: int) -> None:
        """Add the sum of ``count`` images.  Raises DataError where it has another size than the first."""
        for total in self._totals.values():
            if total.shape != image.shape:
                sizes = ["x".join(map(str, one.shape)) for one in (image, total)]
                raise DataError(
                    f"{self.database}: {key_text(key)} is {sizes[0]}, the first row {sizes[1]}; "
                    "build it with a resize"
                )
        is_float = image.dtype.kind == "f"
        self.has_floats |= is_float
        kind = self._floats if is_float else self._integers
        if kind not in self._totals:
            self._totals[kind] = np.zeros(image.shape, kind)
        np.add(self._totals[kind], image, out=self._totals[kind])
        self.rows += count

    def mean(self, kind: type[np.floating[Any]]) -> np.ndarray:
        """Return the sums over the number of rows, divided in a type, as float32."""
        total = sum(one.astype(kind) for one in self._totals.values())
        return np.asarray(total / kind(self.rows), np.float32)


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
