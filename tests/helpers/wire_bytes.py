"""Protocol buffer bytes made by hand, so that tests need no writer of the package."""

from __future__ import annotations

import struct


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes((value % 128 + 128,))
        value //= 128
    return out + bytes((value,))


def number(field: int, value: int) -> bytes:
    return varint(field * 8) + varint(value % 2**64)


def chunk(field: int, data: bytes | str) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    return varint(field * 8 + 2) + varint(len(data)) + data


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def shape(*dims: int) -> bytes:
    return chunk(7, chunk(1, b"".join(varint(dim % 2**64) for dim in dims)))


def blob(values: bytes, *dims: int) -> bytes:
    return chunk(5, values) + shape(*dims)


def layer(name: str, *blobs: bytes, kind: str = "Convolution") -> bytes:
    return chunk(100, chunk(1, name) + chunk(2, kind) + b"".join(chunk(7, b) for b in blobs))
