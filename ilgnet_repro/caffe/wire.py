"""Protobuf's wire format: scans the fields of a message with every length checked and nothing copied.

The rules are those of https://protobuf.dev/programming-guides/encoding/.  Offsets are bytes from the
start of the buffer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, overload

from ..errors import FormatError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED_SIZE = {FIXED64: 8, FIXED32: 4}
_MAX_VARINT_BYTES = 10


class ByteSource(Protocol):
    """Bytes that are read from a file where they are asked for."""

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int, /) -> int: ...
    @overload
    def __getitem__(self, index: slice, /) -> bytes: ...


Buffer = memoryview | bytes | ByteSource


class Field(NamedTuple):
    """One field of a message: where its tag starts, and where its value starts and stops.

    ``value`` is the number of a VARINT field and 0 for any other wire type.
    """

    number: int
    wire: int
    tag: int
    start: int
    stop: int
    value: int


def read_varint(buffer: Buffer, position: int, end: int, where: str) -> tuple[int, int]:
    """Return an unsigned varint and the offset after it."""
    value = shift = 0
    limit = min(end, position + _MAX_VARINT_BYTES)
    for index in range(position, limit):
        byte = buffer[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, index + 1
        shift += 7
    if limit == end:
        raise _truncated(where, position, "a number without its last byte")
    raise FormatError(f"{where}: byte {position:,}: a number longer than 10 bytes; the file is damaged")


def fields(buffer: Buffer, start: int, end: int, where: str) -> Iterator[Field]:
    """Yield the fields of the message in ``buffer[start:end]``, skipping each value by its length.

    Raises FormatError if a field extends past ``end`` or a varint has more than ten bytes, and for wire
    types that Caffe's files never contain (groups 3 and 4, undefined 6 and 7).
    """
    position = start
    while position < end:
        tag = position
        byte = buffer[position]
        if byte < 0x80:
            key, position = byte, position + 1
        else:
            key, position = read_varint(buffer, position, end, where)
        number, wire = key >> 3, key & 7
        value = 0
        if not 0 < number < 1 << 29:
            raise FormatError(f"{where}: byte {tag:,}: field number {number}; the file is damaged")
        if wire == BYTES:
            length, begin = read_varint(buffer, position, end, where)
            if length > end - begin:
                raise _truncated(where, tag, f"a field of {length:,} bytes where {end - begin:,} are left")
            position = begin + length
        elif wire == VARINT:
            begin = position
            value, position = read_varint(buffer, position, end, where)
        elif wire in _FIXED_SIZE:
            begin = position
            position += _FIXED_SIZE[wire]
            if position > end:
                raise _truncated(
                    where, tag, f"a field of {_FIXED_SIZE[wire]} bytes where {end - begin} are left"
                )
        else:
            raise FormatError(f"{where}: byte {tag:,}: wire type {wire}; no Caffe file contains one")
        yield Field(number, wire, tag, begin, position, value)


def signed(value: int, bits: int = 64) -> int:
    """Return an unsigned varint as a two's complement integer, as protobuf encodes int32 and int64."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def text(buffer: Buffer, field: Field) -> str:
    """Return the value of a string field; bytes that are not UTF-8 become U+FFFD."""
    return bytes(buffer[field.start : field.stop]).decode("utf-8", errors="replace")


def encode_varint(value: int) -> bytes:
    """Return the varint of a non-negative integer."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_header(number: int, length: int) -> bytes:
    """Return the tag and length that precede the bytes of a BYTES field."""
    return encode_varint(number << 3 | BYTES) + encode_varint(length)


def _truncated(where: str, position: int, what: str) -> FormatError:
    return FormatError(
        f"{where}: byte {position:,}: {what}; the file is truncated or damaged, fetch it again"
    )
