"""The authors' second path: the whole picture resized to the net's input, minus one mean a channel.

Their ``test.py`` goes through pycaffe's ``load_image`` and ``Transformer``, which resize with scikit-image;
the same numbers come out of numpy here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from ..errors import DataError
from .images import decode_file


def load_image(path: str | os.PathLike[str]) -> np.ndarray:
    """A picture file as pycaffe's ``io.load_image`` gives it: RGB float32 (height, width, 3) in [0, 1].

    A grey picture is repeated thrice, transparency dropped, 16 bits divided by 65,535, and EXIF orientation
    not applied. Raises DataError if the file is no picture.
    """
    import cv2

    picture = decode_file(path, cv2.IMREAD_UNCHANGED)
    if picture is None or picture.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: is not a picture that can be decoded; give a JPEG or PNG")
    return bgr_to_unit(np.atleast_3d(picture))


def bgr_to_unit(picture: np.ndarray) -> np.ndarray:
    """Integers (height, width, 1, 3 or 4) in OpenCV's BGR as RGB float32 in [0, 1]."""
    if picture.shape[2] == 1:
        picture = picture.repeat(3, axis=2)
    # Divided in float64 and rounded once, as scikit-image's img_as_float followed by astype(float32).
    return (picture[:, :, 2::-1] / np.float64(np.iinfo(picture.dtype).max)).astype(np.float32)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (height, width, channels) to ``size`` as pycaffe's ``io.resize_image`` does, as float32.

    Bilinear with half-pixel centres and no smoothing. When enlarging, the outermost samples lie beyond the
    picture's edge and are blended with its *least* value: pycaffe shifts the picture to [0, 1] and leaves
    scikit-image's ``mode='constant'`` filling with 0.
    """
    image = np.asarray(image, np.float32)
    if image.ndim != 3 or min(*image.shape, *size) < 1:
        raise DataError(
            f"picture of shape {image.shape} to {size}: needs (height, width, channels), none empty"
        )
    low, high = image.min(), image.max()
    if low == high:
        return np.full((*size, image.shape[2]), low, np.float32)
    unit = ((image - low) / (high - low)).astype(np.float64)
    rows = _blend(unit, size[0])
    both = _blend(rows.transpose(1, 0, 2), size[1]).transpose(1, 0, 2)
    return (both * (high - low) + low).astype(np.float32)


def _blend(image: np.ndarray, size: int) -> np.ndarray:
    """Resample the first axis to ``size`` points, 0 beyond its ends."""
    length = image.shape[0]
    centres = (np.arange(size) + 0.5) * (length / size) - 0.5
    below = np.floor(centres).astype(np.int64)
    weight = (centres - below).reshape(-1, *[1] * (image.ndim - 1))
    padded = np.concatenate([np.zeros_like(image[:1]), image, np.zeros_like(image[:1])])
    return padded[below + 1] * (1 - weight) + padded[below + 2] * weight


def preprocess(image: np.ndarray, size: tuple[int, int], channel_mean: Sequence[float]) -> np.ndarray:
    """An RGB picture in [0, 1] as the net's input: float32 (3, height, width), BGR times 255, minus the mean.

    ``channel_mean`` is in BGR. The steps and their order are those of pycaffe's ``Transformer.preprocess``.
    """
    mean = np.asarray(channel_mean, np.float32)
    if mean.shape != (3,):
        raise DataError(f"channel mean of shape {mean.shape}: give three numbers, blue first")
    if image.shape[:2] != tuple(size):
        image = resize_image(image, size)
    chw = image.transpose(2, 0, 1)[::-1].astype(np.float32)
    return chw * np.float32(255) - mean[:, None, None]
