"""The size that an image file states, read from its first bytes: an image too large is refused before it is decoded."""

from __future__ import annotations

import os
import re
import struct

MOST_PIXELS = 178_956_970
"""Pixels of the largest image decoded, 512 MiB in colour, as Pillow's limit; OpenCV's own variable changes it."""

VARIABLE = "OPENCV_IO_MAX_IMAGE_PIXELS"

_PNM = re.compile(rb"P[1-7]\s(?:\s|#[^\n]*\n)*(\d{1,20})\s(?:\s|#[^\n]*\n)*(\d{1,20})\s")
_PAM = re.compile(rb"P7\s.{0,200}?WIDTH (\d{1,20})\s.{0,200}?HEIGHT (\d{1,20})\s", re.DOTALL)
_HDR = re.compile(rb"#\?.{0,2000}?\n[-+]Y (\d{1,20}) [-+]X (\d{1,20})\n", re.DOTALL)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG's start-of-frame markers
_LONE = frozenset(range(0xD0, 0xD9)) | {0x01, 0xFF}  # markers without a length


def too_large(data: bytes) -> str:
    """What is wrong with an image file that states more pixels than are decoded; "" for any other."""
    size = stated_size(data)
    limit = os.environ.get(VARIABLE, "")
    most = int(limit) if limit.isdecimal() and len(limit) < 20 else MOST_PIXELS
    if size is None or size[0] * size[1] <= most:
        return ""
    return (
        f"states {size[0]}x{size[1]} pixels, more than {most:,} (the variable {VARIABLE} changes the limit)"
    )


def stated_size(data: bytes) -> tuple[int, int] | None:
    """Width and height as the file's header states them; None where the format is unknown or the header damaged."""
    try:
        if data[:4] == b"\x89PNG":
            return struct.unpack_from(">II", data, 16)
        if data[:2] == b"\xff\xd8":
            return _jpeg(data)
        if data[:2] == b"BM":
            width, height = struct.unpack_from("<ii", data, 18)
            return abs(width), abs(height)
        if data[:3] == b"GIF":
            return struct.unpack_from("<HH", data, 6)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
        if data[:2] in (b"II", b"MM"):
            return _tiff(data)
        if data[4:12] == b"jP  \r\n\x87\n" or data[:4] == b"\xff\x4f\xff\x51":
            at = data.index(b"\xff\x4f\xff\x51", 0, 4096)
            right, bottom, left, top = struct.unpack_from(">IIII", data, at + 8)
            return right - left, bottom - top
        if data[:4] == b"\x59\xa6\x6a\x95":  # Sun raster
            return struct.unpack_from(">II", data, 4)
    except (struct.error, ValueError, IndexError):
        return None
    if found := _PAM.match(data) or _PNM.match(data):
        return int(found[1]), int(found[2])
    if found := _HDR.match(data):
        return int(found[2]), int(found[1])
    return None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """The size in the first frame header, found from segment to segment."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:  # libjpeg skips bytes between segments
            at = data.find(b"\xff", at)
            if at < 0:
                return None
        marker = data[at + 1]
        if marker in _LONE:
            at += 1 if marker == 0xFF else 2
        elif marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        else:
            at += 2 + max(int.from_bytes(data[at + 2 : at + 4], "big"), 2)
    return None


def _webp(data: bytes) -> tuple[int, int] | None:
    if len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff(data: bytes) -> tuple[int, int] | None:
    """The size in the first directory."""
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    sizes = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", data, entry)
        if tag in (256, 257):
            sizes[tag] = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", data, entry + 8)[0]
    return (sizes[256], sizes[257]) if len(sizes) == 2 else None
