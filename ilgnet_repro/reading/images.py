"""Image files into the arrays and bytes that Caffe would store."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..errors import DataError

LARGEST_SIDE = 32_766  # of an image that OpenCV resizes

# What libjpeg's reader of files supplies behind the end of a file cut short: end marks. A marker segment holds
# up to 65,535 bytes, so this many are enough wherever the cut is.
_JPEG_END = b"\xff\xd9" * 0x8001


def decode_file(path: str | os.PathLike[str], flag: int) -> np.ndarray | None:
    """What ``cv2.imread`` with ``flag`` gives, for a file of any name; None if it is absent or no image.

    The file is read here and decoded from memory: OpenCV ends the process at a name that is not UTF-8. A JPEG
    cut short gives the rows it has, as it does in Caffe.
    """
    import cv2

    try:
        if not os.path.isfile(path):  # a pipe would block
            return None
        with open(path, "rb") as file:
            data = file.read()
        if data.startswith(b"\xff\xd8"):
            data += _JPEG_END
        return cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data else None
    except (OSError, ValueError, MemoryError, cv2.error):
        return None


def read_picture(path: str, colour: bool = True, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode a file to uint8 (height, width, 3) in BGR, or (height, width) where ``colour`` is False.

    ``size`` is (height, width): bilinear with half-pixel centres and no smoothing, Caffe's cv::resize.
    As in Caffe built on OpenCV 3.1 or newer, a JPEG's EXIF orientation is applied.
    Raises DataError if the file is absent or no image.
    """
    import cv2

    flag = cv2.IMREAD_COLOR if colour else cv2.IMREAD_GRAYSCALE
    picture = decode_file(path, flag)
    if picture is None:
        reason = "cannot be decoded" if os.path.isfile(path) else "no such file"
        raise DataError(f"{path}: {reason}; remove the row or replace the image")
    return picture if size is None else cv2.resize(picture, (size[1], size[0]))


def encode_picture(picture: np.ndarray, kind: str) -> bytes:
    """Encode to the file format named by its suffix, such as ``png`` or ``jpg`` (quality 95, as Caffe's).

    Raises DataError if OpenCV cannot write that kind.
    """
    import cv2

    check_encode_type(kind)
    done, data = cv2.imencode(f".{kind}", picture)
    if not done:
        raise DataError(f"encode_type {kind!r}: an image of shape {picture.shape} cannot be encoded")
    return data.tobytes()


def check_encode_type(kind: str) -> None:
    """Raise DataError unless OpenCV writes the format with this suffix."""
    import cv2

    if not kind or not cv2.haveImageWriter(f"x.{kind}"):
        raise DataError(f"encode_type {kind!r} cannot be written; use png or jpg")


def guess_encode_type(name: str) -> str:
    """What convert_imageset's ``--encoded`` takes for the encoding: the name's suffix in lower case."""
    return name.rpartition(".")[2].lower()


def same_kind(name: str, kind: str) -> bool:
    """Whether a file's suffix says it is already of that kind (``jpeg`` counts as ``jpg``), as in Caffe."""
    suffix = guess_encode_type(name)
    return suffix == kind.lower() or (suffix == "jpeg" and kind.lower() == "jpg")


_MAGIC = ((b"\x89PNG", ".png"), (b"\xff\xd8", ".jpg"), (b"BM", ".bmp"), (b"GIF8", ".gif"), (b"II*\0", ".tif"))


def suffix_of(data: bytes) -> str:
    """The suffix that fits an image file's first bytes; ``.img`` where they are unknown."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for magic, suffix in _MAGIC if data.startswith(magic)), ".img")


def fitting_name(name: str, suffix: str) -> str:
    """``name`` if its suffix is the given one or a spelling of it, else the name with the suffix added."""
    same = {".jpeg": ".jpg", ".tiff": ".tif"}
    own = Path(name).suffix.lower()
    return name if same.get(own, own) == suffix else name + suffix
