"""Image files: decoded and encoded as Caffe does."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .. import opencv as cv2
from ..caffe.expected_kind import naming_kind
from ..caffe.kinds import Kind
from ..errors import DataError
from ..files import open_input
from .image_size import too_large

_IMAGES = (Kind.PNG, Kind.JPEG, Kind.GIF, Kind.BMP, Kind.TIFF, Kind.WEBP)
LARGEST_SIDE = 32_766  # limit of OpenCV's resize

# libjpeg's file reader supplies end-of-image markers after a truncated file; the in-memory one does not. A marker
# segment has up to 65,535 bytes, so this many markers suffice wherever the file ends.
_JPEG_END = b"\xff\xd9" * 0x8001


def decode(data: bytes, flag: int) -> np.ndarray | None:
    """Return what ``cv2.imdecode`` does with the bytes of an image file; None if they are no image or too large."""
    if not data or too_large(data):
        return None
    try:
        image: np.ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except (ValueError, MemoryError, cv2.error):
        return None
    return image


def decode_file(path: str | os.PathLike[str], flag: int) -> np.ndarray | None:
    """Return what ``cv2.imread`` with ``flag`` would, for a file of any name; None if it is missing or not an image.

    The file is read here and decoded from memory: OpenCV aborts the process on a name that is not UTF-8. A
    truncated JPEG is decoded as far as it goes, as in Caffe.
    """
    try:
        if not os.path.isfile(path):  # a pipe would block
            return None
        with open(path, "rb") as file:
            data = file.read()
    except (OSError, ValueError, MemoryError):
        return None
    return decode(with_jpeg_end(data), flag)


def with_jpeg_end(data: bytes) -> bytes:
    """The bytes of a file, those of a JPEG with end markers, so that a truncated one is decoded as far as it goes."""
    return data + _JPEG_END if data.startswith(b"\xff\xd8") else data


def read_image(path: str, colour: bool = True, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode a file to uint8 (height, width, 3) in BGR, or (height, width) where ``colour`` is False.

    ``size`` is (height, width): bilinear with half-pixel centres and no antialiasing, as Caffe's cv::resize.
    As in Caffe built on OpenCV 3.1 or newer, a JPEG's EXIF orientation is applied.
    Raises DataError if the file is missing or not an image.
    """
    flag = cv2.IMREAD_COLOR if colour else cv2.IMREAD_GRAYSCALE
    image = decode_file(path, flag)
    if image is None:
        raise DataError(f"{path}: {not_decoded(path)}; remove the row or replace the image")
    return image if size is None else cv2.resize(image, (size[1], size[0]))


def not_decoded(path: str | os.PathLike[str]) -> str:
    """Why an image file cannot be decoded: it is absent, damaged, or of another kind, which is named."""
    if not os.path.isfile(path):
        return "no such file"
    if large := too_large(_beginning(path)):
        return large
    error = naming_kind(DataError(""), path, "an image", *_IMAGES)
    return error.what if str(error) else "cannot be decoded"


def _beginning(path: str | os.PathLike[str]) -> bytes:
    """The part of a file that states an image's size."""
    try:
        with open_input(path) as file:
            return bytes(file.read(1 << 20))
    except (OSError, ValueError):
        return b""


def encode_image(image: np.ndarray, kind: str) -> bytes:
    """Encode to the file format with this suffix, such as ``png`` or ``jpg`` (quality 95, as Caffe's).

    Raises DataError if OpenCV cannot write that format.
    """
    check_encode_type(kind)
    done, data = cv2.imencode(f".{kind}", image)
    if not done:
        raise DataError(f"encode_type {kind!r}: an image of shape {image.shape} cannot be encoded")
    return bytes(data)


def check_encode_type(kind: str) -> None:
    """Raise DataError unless OpenCV writes the format with this suffix."""
    if not kind or not cv2.haveImageWriter(f"x.{kind}"):
        raise DataError(f"encode_type {kind!r} cannot be written; use png or jpg")


def guess_encode_type(name: str) -> str:
    """The encoding that convert_imageset's ``--encoded`` chooses: the name's suffix in lower case."""
    return name.rpartition(".")[2].lower()


def has_encoding(name: str, kind: str) -> bool:
    """Whether a file's suffix is that of the encoding (``jpeg`` counts as ``jpg``), as in Caffe."""
    suffix = guess_encode_type(name)
    return suffix == kind.lower() or (suffix == "jpeg" and kind.lower() == "jpg")


_MAGIC = ((b"\x89PNG", ".png"), (b"\xff\xd8", ".jpg"), (b"BM", ".bmp"), (b"GIF8", ".gif"), (b"II*\0", ".tif"))


def suffix_of(data: bytes) -> str:
    """The suffix that fits an image file's first bytes; ``.img`` if they are unknown."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for magic, suffix in _MAGIC if data.startswith(magic)), ".img")


def name_with_suffix(name: str, suffix: str) -> str:
    """``name`` if its suffix is the given one or a variant of it, else the name with the suffix appended."""
    variants = {".jpeg": ".jpg", ".tiff": ".tif"}
    own = Path(name).suffix.lower()
    return name if variants.get(own, own) == suffix else name + suffix
