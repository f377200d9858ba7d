"""Images of any kind as people have them: upright, of any mode, the first frame of an animation, HEIC."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import opencv as cv2
from ..errors import DataError, IlgnetError
from ..files import open_input
from .image_size import MOST_PIXELS, too_large
from .images import LARGEST_SIDE, decode, not_decoded, with_jpeg_end
from .preprocessing import Preprocessing, not_an_image

LARGEST_FILE = 1 << 30
FIRST_FRAME = "has several frames; the first one is taken"
_EXIF = (b"Exif\0\0", b"eXIf", b"EXIF")  # as JPEG, PNG and WebP mark it
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@dataclass(frozen=True, eq=False)
class Photo:
    """Decoded pixels, (height, width, channels) in OpenCV's BGR, and what the user should know about them."""

    pixels: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of an image file.  Raises DataError if it cannot be read, or is too large to be an image."""
    try:
        with open_input(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST_FILE:
                raise DataError(
                    f"{os.fsdecode(path)}: {size:,} bytes; an image file has at most {LARGEST_FILE:,}"
                )
            data: bytes = file.read()
    except FileNotFoundError as error:
        raise DataError(f"{os.fsdecode(path)}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{os.fsdecode(path)}: is a folder; give its files") from error
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{os.fsdecode(path)}: cannot be read ({reason}); check the path") from error
    return data


def decode_photo(
    data: bytes, how: Preprocessing | None, name: str, *, raw_pixels: bool = False, is_path: bool = False
) -> Photo:
    """Decode an image file for a preprocessing, or in 8-bit colour for None.

    EXIF orientation is applied unless ``raw_pixels``; an image without one has the pixels that
    `Preprocessing` reads from the file.  ``name`` is that of the image in messages, also its path if ``is_path``.
    Raises DataError for anything else.
    """
    if _is_heic(data):
        return _decode_heic(data, name)
    image = decode(with_jpeg_end(data), _flag(data, how, raw_pixels))
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise not_an_image(name, not_decoded(name) if is_path else too_large(data) or "cannot be decoded")
    _check_sides(image, how, name)
    return Photo(np.atleast_3d(image), (FIRST_FRAME,) if has_several_frames(data) else ())


def _flag(data: bytes, how: Preprocessing | None, raw_pixels: bool) -> int:
    """How OpenCV decodes a file: pycaffe's way for the path whole, Caffe's for the path crop."""
    if how is None or how.path == "crop":
        flag = cv2.IMREAD_GRAYSCALE if how is not None and how.channels == 1 else cv2.IMREAD_COLOR
        return int(flag | (cv2.IMREAD_IGNORE_ORIENTATION if raw_pixels else 0))
    if raw_pixels or not any(mark in data for mark in _EXIF):
        return int(cv2.IMREAD_UNCHANGED)
    # IMREAD_UNCHANGED never turns an image, this does; both keep 16 bits, and transparency is dropped in any case.
    return int(cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)


def _check_sides(image: np.ndarray, how: Preprocessing | None, name: str) -> None:
    height, width = image.shape[:2]
    if how is not None and how.path == "crop" and max(height, width) > LARGEST_SIDE:
        raise DataError(f"{name}: has {width}x{height} pixels; sides are from 1 to {LARGEST_SIDE}")


# ------------------------------------------------------------------------------------------- HEIC


def _is_heic(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIC


def _decode_heic(data: bytes, name: str) -> Photo:
    """Decode with pillow-heif, which turns the image as its own header says."""
    try:
        import pillow_heif
    except ImportError as error:
        raise DataError(f"{name}: is a HEIC image; pip install 'ilgnet_repro[heic]' reads them") from error
    try:
        file: Any = pillow_heif.open_heif(data, convert_hdr_to_8bit=True, bgr_mode=True)
        width, height = file.size
        if width * height > MOST_PIXELS:
            raise DataError(f"{name}: states {width}x{height} pixels, more than {MOST_PIXELS:,}; shrink it")
        pixels = np.asarray(file)
        frames = len(file)
    except IlgnetError:
        raise
    except Exception as error:  # its own kinds of errors are those of a C library, without a common class
        raise DataError(f"{name}: is a HEIC image that cannot be decoded; give a JPEG or PNG") from error
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise DataError(f"{name}: is a HEIC image of {pixels.dtype}; give a JPEG or PNG")
    pixels = np.atleast_3d(pixels)[:, :, :3]
    if pixels.shape[2] != 3:
        pixels = pixels[:, :, :1].repeat(3, axis=2)
    return Photo(np.ascontiguousarray(pixels), (FIRST_FRAME,) if frames > 1 else ())


# ------------------------------------------------------------------------------------------- frames


def has_several_frames(data: bytes) -> bool:
    """Whether a GIF, PNG, WebP or TIFF file has more than one frame; False for a damaged one."""
    try:
        if data[:4] == b"GIF8":
            return _gif_frames(data)
        if data[:4] == b"\x89PNG":
            at = data.find(b"acTL", 0, data.find(b"IDAT") + 1)
            return at > 0 and int(struct.unpack_from(">I", data, at + 4)[0]) > 1
        if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X":
            return bool(data[20] & 2) and data.find(b"ANMF", data.find(b"ANMF") + 4) > 0
        if data[:4] in (b"II*\0", b"MM\0*"):
            order = "<" if data[:2] == b"II" else ">"
            (at,) = struct.unpack_from(f"{order}I", data, 4)
            (count,) = struct.unpack_from(f"{order}H", data, at)
            return bool(struct.unpack_from(f"{order}I", data, at + 2 + 12 * count)[0])
    except (struct.error, IndexError):
        pass
    return False


def _gif_frames(data: bytes) -> bool:
    """Whether a GIF has a second image descriptor, found from block to block."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    images = 0
    while data[at] != 0x3B:
        if data[at] == 0x2C:
            images += 1
            if images > 1:
                return True
            packed = data[at + 9]
            at += 10 + (3 << (packed & 7) + 1 if packed & 0x80 else 0) + 1
        else:
            at += 2
        while data[at]:  # sub-blocks, each with its length
            at += data[at] + 1
        at += 1
    return False
