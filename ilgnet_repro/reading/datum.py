"""Caffe's ``Datum``: one image and its label, the value of a database row."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from .. import opencv as cv2
from ..caffe.wire import BYTES, Buffer, fields
from ..errors import DataError, FormatError
from ..schema import caffe_pb2
from .annotated import datum_field
from .image_size import too_large
from .images import decode, suffix_of

MAX_SIDE = 1 << 20
"""Largest height, width or channel count accepted; a row that states more is damaged."""

INT32 = range(-(1 << 31), 1 << 31)
"""Range of the ``label`` field."""


def encoded_datum(data: bytes, label: int) -> bytes:
    """Serialise the bytes of an image file; the shape fields stay unset, as in Caffe."""
    return caffe_pb2.Datum(data=data, label=label, encoded=True).SerializeToString()


def raw_datum(image: np.ndarray, label: int) -> bytes:
    """Serialise an image of shape (channels, height, width), uint8 as ``data`` or float32 as ``float_data``.

    ``encoded: false`` is written out, as Caffe's CVMatToDatum sets it explicitly.
    """
    if image.ndim != 3:
        raise DataError(f"image of shape {image.shape}: a Datum holds (channels, height, width)")
    channels, height, width = image.shape
    datum = caffe_pb2.Datum(channels=channels, height=height, width=width, label=label, encoded=False)
    if image.dtype == np.uint8:
        datum.data = image.tobytes()
    else:
        datum.float_data.extend(image.astype(np.float32).ravel())
    return datum.SerializeToString()


class DatumHeader(NamedTuple):
    """A row without its image: label, kind (``raw``, ``float`` or a file suffix such as ``png``), the shape
    (channels, height, width) if the row states one, and the image's size in bytes."""

    label: int
    kind: str
    shape: tuple[int, int, int] | None
    stored: int


def datum_header(value: Buffer, where: str) -> DatumHeader:
    """Read all fields of a row but its image, which is skipped; of an AnnotatedDatum those of its Datum.

    Raises FormatError (starting with ``where``) if the value is not a protocol buffer.
    """
    numbers = dict.fromkeys((1, 2, 3, 5, 7), 0)
    start, data, floats = b"", 0, 0
    inner = datum_field(value, where)
    begin, end = (0, len(value)) if inner is None else (inner.start, inner.stop)
    for field in fields(value, begin, end, where):
        if field.number == 4 and field.wire == BYTES:
            start, data = (
                bytes(value[field.start : min(field.start + 16, field.stop)]),
                field.stop - field.start,
            )
        elif field.number == 6:
            floats += field.stop - field.start
        elif field.number in numbers:
            numbers[field.number] = field.value
    label = numbers[5] - (1 << 64) if numbers[5] >> 63 else numbers[5]
    if numbers[7]:
        return DatumHeader(label, suffix_of(start)[1:], None, data)
    shape = (numbers[1], numbers[2], numbers[3])
    # As in Caffe, which reads float_data only where data is empty.
    return DatumHeader(label, "float" if floats and not data else "raw", shape, data or floats)


def parse_datum(value: bytes, where: str) -> caffe_pb2.Datum:
    """Parse a row's value, a Datum or an AnnotatedDatum. Raises DataError (starting with ``where``) if it is neither."""
    with suppress(FormatError):  # reported below
        if inner := datum_field(value, where):
            value = value[inner.start : inner.stop]
    try:
        return caffe_pb2.Datum.FromString(value)
    except DecodeError as error:
        raise DataError(
            f"{where}: is not a Datum; the row is damaged or the database is not Caffe's"
        ) from error


def datum_image(datum: caffe_pb2.Datum, where: str, colour: bool | None = None) -> np.ndarray:
    """The image of a row as (channels, height, width): uint8, or float32 for ``float_data``.

    ``colour`` is Caffe's force_color (True) or force_gray (False) and applies to encoded rows only, as in
    Caffe; None keeps the file's channels: one for a grey PNG, four with alpha.
    Raises DataError if the row cannot be decoded or its size fields disagree with its data.
    """
    if datum.encoded:
        if not datum.data and datum.float_data:
            raise DataError(
                f"{where}: is marked encoded but holds float_data; rebuild the row with encoded: false"
            )
        return _decode(datum.data, where, colour)
    if colour is not None:  # Caffe logs an error here and continues.
        warnings.warn("force_color and force_gray have no effect on rows that are not encoded", stacklevel=2)
    shape = (datum.channels, datum.height, datum.width)
    if not all(0 < side <= MAX_SIDE for side in shape):
        raise DataError(f"{where}: shape {'x'.join(map(str, shape))} is not valid; rebuild the database")
    count = shape[0] * shape[1] * shape[2]
    data = datum.data  # read once: each access copies
    stored = len(data) or len(datum.float_data)
    if stored != count:
        raise DataError(
            f"{where}: has {stored} values where {'x'.join(map(str, shape))} needs {count}; "
            "rebuild the database"
        )
    if data:
        return np.frombuffer(data, np.uint8).reshape(shape)
    return np.array(datum.float_data, np.float32).reshape(shape)


def _decode(data: bytes, where: str, colour: bool | None) -> np.ndarray:
    flag = {None: cv2.IMREAD_UNCHANGED, True: cv2.IMREAD_COLOR, False: cv2.IMREAD_GRAYSCALE}[colour]
    image = decode(data, flag)
    if image is None and (large := too_large(data)):
        raise DataError(f"{where}: the encoded image {large}; remove the row")
    if image is None:
        raise DataError(f"{where}: the encoded image cannot be decoded; rebuild the row from its file")
    if image.dtype != np.uint8:
        raise DataError(f"{where}: has type {image.dtype}, Caffe reads uint8 only; use force_color")
    return hwc_to_chw(image)


def hwc_to_chw(image: np.ndarray) -> np.ndarray:
    """OpenCV's (height, width[, channels]) as Caffe's contiguous (channels, height, width)."""
    return np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1))


def chw_to_hwc(image: np.ndarray) -> np.ndarray:
    """Caffe's (channels, height, width) as OpenCV's (height, width[, channels])."""
    return np.ascontiguousarray(image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0))
