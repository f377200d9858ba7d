"""Scalar values of protobuf's text format: parsed from tokens, and formatted as Caffe prints them."""

from __future__ import annotations

import re
import struct
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from ..errors import excerpt, one_of
from .tokens import NAME, NUMBER, STRING

_INTEGER_RANGES = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}
_FLOATS = (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE)
_BOOLS = {
    "true": True,
    "True": True,
    "t": True,
    "1": True,
    "false": False,
    "False": False,
    "f": False,
    "0": False,
}
_NOT_FINITE = {"inf": float("inf"), "infinity": float("inf"), "nan": float("nan")}
_ESCAPE = re.compile(
    r"\\(?:(?P<octal>[0-7]{1,3})|[xX](?P<hex>[0-9a-fA-F]{1,2})|u(?P<u>[0-9a-fA-F]{4})|U(?P<U>[0-9a-fA-F]{8})|(?P<one>.))"
)
_SINGLE = {"n": 10, "t": 9, "r": 13, "a": 7, "b": 8, "f": 12, "v": 11, "\\": 92, "'": 39, '"': 34, "?": 63}
_PRINTED = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", '"': '\\"'}


def read_value(field: FieldDescriptor, kind: str, text: str) -> bool | int | float | str | bytes:
    """Return the value of a scalar field from its token; a string is one or more quoted pieces.

    Raises ValueError with the value and the remedy; the caller adds the position.
    """
    if field.type in _INTEGER_RANGES:
        return _integer(field, kind, text)
    if field.type in _FLOATS:
        return _float(kind, text)
    if field.type == FieldDescriptor.TYPE_BOOL:
        if text not in _BOOLS:
            raise ValueError(f"{excerpt(text)} is neither true nor false; write one of them")
        return _BOOLS[text]
    if field.type == FieldDescriptor.TYPE_ENUM:
        return _enum(field, kind, text)
    if kind != STRING:
        raise ValueError(f'{excerpt(text)} is not a string; put it in quotes: "{excerpt(text)}"')
    data = unquote(text)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return data
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{excerpt(text)} is not UTF-8 text; save the file as UTF-8") from None


def unquote(text: str) -> bytes:
    """Return the bytes of quoted pieces, with escapes resolved. Raises ValueError for an undefined escape."""

    def resolve(match: re.Match[str]) -> bytes:
        if match["octal"]:
            return bytes((int(match["octal"], 8) & 0xFF,))
        if match["hex"]:
            return bytes((int(match["hex"], 16),))
        code = match["u"] or match["U"]
        if code:
            if int(code, 16) > 0x10FFFF or 0xD800 <= int(code, 16) < 0xE000:
                raise ValueError(f"{match.group()} is not a character; use one up to \\U0010FFFF")
            return chr(int(code, 16)).encode()
        if match["one"] not in _SINGLE:
            raise ValueError(f"unknown escape {excerpt(match.group())}; write \\\\ for a backslash")
        return bytes((_SINGLE[match["one"]],))

    out = bytearray()
    for piece in re.finditer(r"\"[^\"\\]*(?:\\.[^\"\\]*)*\"|'[^'\\]*(?:\\.[^'\\]*)*'", text):
        body, position = piece.group()[1:-1], 0
        for match in _ESCAPE.finditer(body):
            out += body[position : match.start()].encode("utf-8", "surrogateescape") + resolve(match)
            position = match.end()
        out += body[position:].encode("utf-8", "surrogateescape")
    return bytes(out)


def quote(value: str | bytes) -> str:
    """Return a string in double quotes, with unprintable characters as octal escapes."""
    # Latin-1 maps each byte to the code point of its value; non-ASCII bytes become octal escapes too.
    characters = value if isinstance(value, str) else value.decode("latin-1")
    last = "\U0010ffff" if isinstance(value, str) else "~"

    def printed(character: str) -> str:
        plain = " " <= character <= last and character != "\x7f"
        return _PRINTED.get(character) or (character if plain else f"\\{ord(character):03o}")

    return '"' + "".join(map(printed, characters)) + '"'


def format_value(field: FieldDescriptor, value: Any) -> str:
    """Return the text of a scalar: a float with the fewest digits that parse back to the same value."""
    if field.type == FieldDescriptor.TYPE_ENUM:
        assert field.enum_type is not None
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if field.type == FieldDescriptor.TYPE_FLOAT:
        return _shortest(value)
    return quote(value) if isinstance(value, (str, bytes)) else str(value)


def _shortest(value: float) -> str:
    for digits in range(6, 9):
        text = f"{value:.{digits}g}"
        try:
            if struct.unpack("<f", struct.pack("<f", float(text)))[0] == value:
                return text
        except OverflowError:  # rounded up past the largest float32; more digits are needed
            continue
    return f"{value:.9g}"


def _integer(field: FieldDescriptor, kind: str, text: str) -> int:
    digits = text.lstrip("-")
    try:
        if kind != NUMBER:
            raise ValueError
        if digits[:2] in ("0x", "0X"):
            number = int(digits, 16)
        else:
            number = int(digits, 8 if digits[0] == "0" and len(digits) > 1 else 10)
    except ValueError:
        raise ValueError(f"{excerpt(text)} is not an integer; write one") from None
    number = -number if text.startswith("-") else number
    low, high = _INTEGER_RANGES[field.type]
    if not low <= number <= high:
        raise ValueError(f"{excerpt(text)} is out of range; use {low} to {high}")
    return number


def _float(kind: str, text: str) -> float:
    digits = text.lstrip("-")
    sign = -1.0 if text.startswith("-") else 1.0
    if kind == NAME and digits.lower() in _NOT_FINITE:
        return sign * _NOT_FINITE[digits.lower()]
    # Only integers may be hexadecimal or octal, as in protobuf.
    if kind != NUMBER or digits[:2] in ("0x", "0X") or re.fullmatch("0[0-9]+", digits):
        raise ValueError(f"{excerpt(text)} is not a number; write one such as 0.5 or 1e-4")
    return sign * float(digits.rstrip("fF"))


def _enum(field: FieldDescriptor, kind: str, text: str) -> int:
    assert field.enum_type is not None
    names = field.enum_type.values_by_name
    if kind == NAME and text in names:
        return names[text].number
    if kind == NUMBER and text in {str(value.number) for value in names.values()}:
        return int(text)
    raise ValueError(f"{excerpt(text)} is not a {field.enum_type.name}; use {one_of(names)}")
