"""SSD's ``AnnotatedDatum``: a ``Datum`` and the boxes of its objects, the value of a database row.

Source: SSD, src/caffe/proto/caffe.proto. Its first field is the Datum, where that of a Datum is a number.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ..caffe.wire import BYTES, FIXED32, VARINT, Buffer, Field, fields

_DATUM, _GROUP = 1, 3  # fields of AnnotatedDatum
_LABEL, _ANNOTATION = 1, 2  # of AnnotationGroup
_INSTANCE, _BOX = 1, 2  # of Annotation
_CORNERS = range(1, 5)  # of NormalizedBBox: xmin, ymin, xmax, ymax
_DIFFICULT = 6


class Box(NamedTuple):
    """An object: its class, its number among those of the class, and its corners on a scale of 0 to 1."""

    label: int
    instance: int
    xmin: float
    ymin: float
    xmax: float
    ymax: float
    difficult: bool


def datum_field(value: Buffer, where: str) -> Field | None:
    """The Datum within an AnnotatedDatum; None if the value is a Datum itself. Raises FormatError for neither."""
    for field in fields(value, 0, len(value), where):
        if field.number == _DATUM and field.wire == BYTES:
            return field
        if (
            field.number == _DATUM or field.number > _GROUP
        ):  # of a Datum; what follows may be large, and is not read
            return None
    return None


def is_annotated(value: Buffer, where: str) -> bool:
    """Whether a row's value is an AnnotatedDatum."""
    return datum_field(value, where) is not None


def boxes(value: Buffer, where: str) -> tuple[Box, ...]:
    """The boxes of a row, none in a Datum. Raises FormatError, starting with ``where``, for a damaged one."""
    if datum_field(value, where) is None:
        return ()
    found: list[Box] = []
    for group in _messages(value, 0, len(value), _GROUP, where):
        label = _number(value, group.start, group.stop, _LABEL, where)
        for one in _messages(value, group.start, group.stop, _ANNOTATION, where):
            instance = _number(value, one.start, one.stop, _INSTANCE, where)
            for box in _messages(value, one.start, one.stop, _BOX, where):
                found.append(_box(value, box, label, instance, where))
    return tuple(found)


def _box(value: Buffer, box: Field, label: int, instance: int, where: str) -> Box:
    corners, difficult = [0.0] * 4, False
    for field in fields(value, box.start, box.stop, where):
        if field.number in _CORNERS and field.wire == FIXED32:
            corners[field.number - 1] = struct.unpack("<f", bytes(value[field.start : field.stop]))[0]
        elif field.number == _DIFFICULT and field.wire == VARINT:
            difficult = bool(field.value)
    xmin, ymin, xmax, ymax = corners
    return Box(label, instance, xmin, ymin, xmax, ymax, difficult)


def _messages(value: Buffer, start: int, stop: int, number: int, where: str) -> Iterator[Field]:
    return (
        field for field in fields(value, start, stop, where) if field.number == number and field.wire == BYTES
    )


def _number(value: Buffer, start: int, stop: int, number: int, where: str) -> int:
    """The last value of an int32 field, 0 if it is absent."""
    found = 0
    for field in fields(value, start, stop, where):
        if field.number == number and field.wire == VARINT:
            found = field.value - (1 << 64) if field.value >> 63 else field.value
    return found
