"""BlobProto: an array with its shape, within a memory-mapped file or as a mean file (`.binaryproto`) of its own."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import FormatError
from ..files import atomic_file, map_file
from ..schema import caffe_pb2
from . import wire
from .expected_kind import expect
from .kinds import Kind

MOST_AXES = 32  # kMaxBlobAxes of Caffe's blob.hpp
LARGEST_COUNT = 2**31 - 1  # counts are int there
LARGEST_HALF = 65_520.0  # from here on, rounding to float16 gives infinity
_MAX_RUNS = 65_536
_DATA, _DIFF, _DOUBLE_DATA, _SHAPE = 5, 6, 8, 7
# NVIDIA's Caffe and OpenCV store values of other types as bytes, with their type in a field of its own.
_RAW_TYPE, _RAW_DATA = 10, 12
_RAW_DTYPES = {0: "<f8", 1: "<f4", 2: "<f2"}
_RAW_NAMES = ("DOUBLE", "FLOAT", "FLOAT16", "INT", "UINT")
_FLOAT16 = 2
_LEGACY = (1, 2, 3, 4)  # num, channels, height, width
# C3D 1.0 put a length before the height, and so moved the numbers after it; a varint in field 5 shows it.
_C3D_DIMS, _C3D_DATA = (1, 2, 3, 4, 5), 6
_SINGLE_WIRE = {
    _DATA: wire.FIXED32,
    _C3D_DATA: wire.FIXED32,
    _DOUBLE_DATA: wire.FIXED64,
}  # of an unpacked value


class Run(NamedTuple):
    """``size`` values of a file, ``stride`` bytes apart from ``offset`` on."""

    offset: int
    size: int
    stride: int


@dataclass(frozen=True)
class Blob:
    """The shape of an array, and where its values are in the file.

    ``legacy`` marks shapes stored as num/channels/height/width, as Caffe did until late 2014, and the five numbers of
    C3D 1.0 (``c3d``).
    """

    shape: tuple[int, ...]
    legacy: bool
    dtype: np.dtype
    runs: tuple[Run, ...] = field(repr=False)
    buffer: memoryview = field(repr=False, compare=False)
    c3d: bool = False

    def array(self) -> np.ndarray:
        """Return the values as float32 (float64 for ``double_data``) in C order.

        One packed run, which is what Caffe writes, is returned as a view: the array is writable, writes do
        not reach the file, and its address may be unaligned (NumPy and PyTorch accept that). Values in
        several runs, or unpacked ones, are copied into a new array, and float16 ones are converted.
        """
        values = self._values()
        return values.astype(np.float32) if self.dtype == np.float16 else values

    def first(self) -> Blob:
        """Return the blob of the first value alone."""
        return replace(
            self, shape=(1,), legacy=False, runs=(self.runs[0]._replace(size=1),) if self.runs else ()
        )

    def _values(self) -> np.ndarray:
        if len(self.runs) == 1 and self.runs[0].stride == self.dtype.itemsize:
            return self._view(self.runs[0]).reshape(self.shape)
        parts = [self._view(run) for run in self.runs] or [np.empty(0, self.dtype)]
        return np.concatenate(parts).reshape(self.shape)

    def _view(self, run: Run) -> np.ndarray:
        return np.ndarray((run.size,), self.dtype, self.buffer, run.offset, (run.stride,))


@dataclass(frozen=True)
class LayerBlobs:
    """A layer of the file: its name, its type as in Caffe 1.0, and its arrays in Caffe's order."""

    name: str
    type: str
    blobs: tuple[Blob, ...]


def scan_blob(buffer: memoryview, start: int, stop: int, where: str) -> Blob:
    """Locate shape and values of the BlobProto in ``buffer[start:stop]``; diffs are skipped.

    Raises FormatError if the shape and the number of values disagree.
    """
    dims: list[wire.Field] = []
    legacy: dict[int, int] = {}
    raw: wire.Field | None = None
    raw_type: int | None = None
    runs: dict[int, list[Run]] = {_DATA: [], _C3D_DATA: [], _DOUBLE_DATA: []}
    position = start
    while position < stop:  # restarted after a run of unpacked values, which is read in one step
        for item in wire.fields(buffer, position, stop, where):
            position = item.stop
            if item.number in runs and item.wire == wire.BYTES:
                _append(
                    runs[item.number], _packed(item, 8 if item.number == _DOUBLE_DATA else 4, where), where
                )
            elif item.number in (5, 6, 8, 9) and item.wire in (wire.FIXED32, wire.FIXED64):
                run = _unpacked(buffer, item, stop)
                if item.wire == _SINGLE_WIRE.get(item.number):
                    _append(runs[item.number], run, where)
                position = item.tag + run.size * run.stride
                break
            elif item.number == _SHAPE and item.wire == wire.BYTES:
                dims.append(item)
                if len(dims) > MOST_AXES:
                    raise FormatError(f"{where}: more than {MOST_AXES} axes; the file is damaged")
            elif item.number == _RAW_DATA and item.wire == wire.BYTES:
                raw = item
            elif item.number == _RAW_TYPE and item.wire == wire.VARINT:
                raw_type = item.value
            elif item.number in _C3D_DIMS and item.wire == wire.VARINT:
                legacy[item.number] = wire.signed(item.value, 32)
    if 5 in legacy:
        shape = tuple(legacy.get(number, 0) for number in _C3D_DIMS)
        _check_count(shape, sum(run.size for run in runs[_C3D_DATA]), where)
        return Blob(shape, True, np.dtype("<f4"), tuple(runs[_C3D_DATA]), buffer, c3d=True)
    dtype = np.dtype("<f8" if runs[_DOUBLE_DATA] else "<f4")
    values = runs[_DOUBLE_DATA if runs[_DOUBLE_DATA] else _DATA]
    if raw is not None and raw.stop > raw.start:
        if values:
            raise FormatError(f"{where}: has both data and raw_data; the file is damaged")
        dtype, values = _raw_values(raw, raw_type, where)
    # Caffe's Blob::FromProto uses the four numbers if any of them is set.
    if legacy:
        shape = tuple(legacy.get(number, 0) for number in _LEGACY)
    else:
        shape = _stated_shape(buffer, dims, where)
    _check_count(shape, sum(run.size for run in values), where)
    return Blob(shape, bool(legacy), dtype, tuple(values), buffer)


def _raw_values(item: wire.Field, kind: int | None, where: str) -> tuple[np.dtype, list[Run]]:
    """Return the type and place of values stored as bytes."""
    if kind not in _RAW_DTYPES:
        stated = "absent" if kind is None else _RAW_NAMES[kind] if kind < len(_RAW_NAMES) else kind
        raise FormatError(
            f"{where}: raw_data_type is {stated}; only DOUBLE, FLOAT and FLOAT16 values are supported"
        )
    dtype = np.dtype(_RAW_DTYPES[kind])
    return dtype, [_packed(item, dtype.itemsize, where)]


def _stated_shape(buffer: memoryview, items: list[wire.Field], where: str) -> tuple[int, ...]:
    lengths: list[int] = []
    for item in items:
        lengths.extend(_dims(buffer, item, where))
        if len(lengths) > MOST_AXES:
            raise FormatError(f"{where}: more than {MOST_AXES} axes; the file is damaged")
    return tuple(lengths)


def blob_chunks(
    array: np.ndarray, legacy: bool, where: str, *, half: bool = False, diff: np.ndarray | None = None
) -> tuple[int, Iterator[bytes | memoryview]]:
    """Return the length of an array's BlobProto, and its bytes in chunks, in the order in which Caffe writes fields.

    float64 becomes ``double_data``; any other dtype is written as float32. The array is copied only if
    it is not contiguous float.  ``legacy`` writes num/channels/height/width.  ``half`` writes float16 into
    ``raw_data``, as OpenCV's `shrinkCaffeModel`: NVIDIA's Caffe and OpenCV read it, Caffe 1.0 does not.  ``diff`` is an
    array of as many values for the field of that name.
    """
    number, kind = (_DOUBLE_DATA, "<f8") if array.dtype == np.float64 else (_DATA, "<f4")
    if half:
        number, kind = _RAW_DATA, "<f2"
        _check_half(array, where)
    if array.ndim > (4 if legacy else MOST_AXES):
        most = "the num/channels/height/width form has 4" if legacy else f"Caffe has at most {MOST_AXES}"
        raise FormatError(f"{where}: {array.ndim} axes; {most}, reshape it")
    prefix, shape = b"", b""
    if legacy:
        num, channels, height, width = (1,) * (4 - array.ndim) + array.shape
        prefix = caffe_pb2.BlobProto(
            num=num, channels=channels, height=height, width=width
        ).SerializeToString()
    elif array.ndim:
        shape = caffe_pb2.BlobProto(shape=caffe_pb2.BlobShape(dim=array.shape)).SerializeToString()
    size = array.size * int(kind[-1])
    header = wire.encode_header(number, size) if size else b""
    if half and size:
        header = wire.encode_varint(_RAW_TYPE << 3 | wire.VARINT) + wire.encode_varint(_FLOAT16) + header
    before, after = (prefix + header, shape) if number < _SHAPE else (prefix + shape + header, b"")
    diff = diff if size else None
    between = b"" if diff is None else wire.encode_header(_DIFF, diff.size * 4)
    extra = 0 if diff is None else len(between) + diff.size * 4

    def chunks() -> Iterator[bytes | memoryview]:
        yield before
        if size:
            yield np.ascontiguousarray(array, dtype=kind).reshape(-1).view(np.uint8).data
        if diff is not None:
            yield between
            yield np.ascontiguousarray(diff, dtype="<f4").reshape(-1).view(np.uint8).data
        yield after

    return len(before) + size + extra + len(after), chunks()


def _check_half(array: np.ndarray, where: str) -> None:
    """Raise FormatError for a value that float16 would turn into infinity."""
    finite = np.abs(array[np.isfinite(array)])
    largest = finite.max(initial=0)
    if largest >= LARGEST_HALF:
        raise FormatError(f"{where}: a value of {largest:.3g} is past the range of float16; write float32")


def _dims(buffer: memoryview, shape: wire.Field, where: str) -> Iterator[int]:
    """Yield the dimensions of a BlobShape, packed or not."""
    for item in wire.fields(buffer, shape.start, shape.stop, where):
        if item.number == 1 and item.wire == wire.VARINT:
            yield wire.signed(item.value)
        elif item.number == 1 and item.wire == wire.BYTES:
            position = item.start
            while position < item.stop:
                value, position = wire.read_varint(buffer, position, item.stop, where)
                yield wire.signed(value)


def _packed(item: wire.Field, size: int, where: str) -> Run:
    length = item.stop - item.start
    if length % size:
        raise FormatError(f"{where}: {length:,} bytes of values of {size} bytes each; the file is damaged")
    return Run(item.start, length // size, size)


def _unpacked(buffer: memoryview, item: wire.Field, stop: int) -> Run:
    """Return the run of unpacked values that starts at ``item``: equal tags at equal distances, found with NumPy."""
    stride = item.stop - item.tag
    most = (stop - item.tag) // stride if item.start - item.tag == 1 else 1
    tags: np.ndarray = np.ndarray((most,), np.uint8, buffer, item.tag, (stride,))
    count, step = 1, 64
    while count < most:
        other = np.flatnonzero(tags[count : count + step] != buffer[item.tag])
        if other.size:
            count += int(other[0])
            break
        count, step = min(count + step, most), step * 2
    return Run(item.start, count, stride)


def _append(runs: list[Run], run: Run, where: str) -> None:
    if run.size:
        runs.append(run)
    if len(runs) > _MAX_RUNS:
        raise FormatError(f"{where}: its values are in over {_MAX_RUNS:,} pieces; the file is damaged")


def _check_count(shape: tuple[int, ...], held: int, where: str) -> None:
    written = "x".join(map(str, shape)) or "()"
    if any(dim < 0 for dim in shape):
        raise FormatError(f"{where}: shape {written} has a negative dimension; the file is damaged")
    if math.prod(max(dim, 1) for dim in shape) > LARGEST_COUNT:
        raise FormatError(
            f"{where}: shape {written} is beyond Caffe's {LARGEST_COUNT:,} values per blob; damaged"
        )
    needed = math.prod(shape)
    if needed != held:
        raise FormatError(
            f"{where}: shape {written} needs {needed:,} values, the file has {held:,}; fetch the file again"
        )


# ---------------------------------------------------------------------- mean files


def read_blob(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a BlobProto file: float32 (float64 for ``double_data``) in the shape it declares.

    A mean file is (1, channels, height, width).  The values are a view of the memory-mapped file.
    Raises FormatError if the file is not a BlobProto or its shape and number of values disagree.
    """
    name = Path(path).name
    expect(path, Kind.BINARYPROTO, Kind.UNKNOWN, what="a mean file")
    buffer = map_file(path)
    return scan_blob(buffer, 0, len(buffer), name).array()


def write_blob(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write an array of up to four axes in the num/channels/height/width form of mean files.

    Missing leading axes become 1.  The file is complete or absent.
    """
    _, chunks = blob_chunks(np.asarray(array), legacy=True, where=Path(path).name)
    with atomic_file(path) as file:
        for chunk in chunks:
            file.write(chunk)
