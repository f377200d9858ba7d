"""Images (paths, arrays, PIL images) prepared as the input of a net, by what is known of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypedDict

import numpy as np

from .about import About
from .errors import DataError, printable
from .reading.images import LARGEST_SIDE
from .reading.preprocessing import ORDERS, Preprocessing, read_bgr


class PrepareOptions(TypedDict, total=False):
    """The options of a net's `prepare`, by keyword."""

    preprocessing: Preprocessing | None
    size: tuple[int, int] | None
    order: str


def prepare(
    about: About,
    images: Any,
    *,
    preprocessing: Preprocessing | None = None,
    size: tuple[int, int] | None = None,
    order: str = "BGR",
    net: str = "",
) -> np.ndarray:
    """Return images as the net's input blob: float32 N x C x H x W.

    An image is a path, a PIL image, or a uint8 array height x width (grey) or height x width x 1, 3 or 4
    (transparency is dropped), its channels in ``order``: BGR as `cv2.imread` gives them, or RGB.  ``images`` is
    one of these, several of them in any mix, or one array N x height x width x channels.  Arrays of other types are
    refused: whether their range is 0 to 1 or 0 to 255 is unknown.  ``size`` (height, width) replaces the
    preprocessing's.  Raises DataError, with the file's name or the image's number, for anything else.
    """
    listed = list_images(images)
    if about.image_order:
        return _stacked(listed, about.image_order, order)
    how = preprocessing or _stated(about, net)
    if order not in ORDERS:
        raise DataError(f"order {order!r}: the channels of an array are in the order BGR or RGB")
    if size is not None and size != how.size:
        how = replace(how, size=size)
    try:
        blob = np.empty((len(listed), how.channels, *how.size), np.float32)
    except MemoryError as error:
        raise DataError(f"{len(listed)} images do not fit in memory; prepare fewer at a time") from error
    for index, image in enumerate(listed):
        blob[index] = _prepare_one(how, image, order, f"image {index + 1} of {len(listed)}")
    return blob


def prepare_numbered(about: About, image: Any, number: int, net: str = "") -> np.ndarray:
    """Return one image of many as `prepare` does, float32 1 x C x H x W; errors name it by its file or ``number``."""
    where = f"image {number}"
    if about.image_order:
        return stack_pixels([_pixels(image, "BGR", where)], about.image_order)
    return _prepare_one(_stated(about, net), image, "BGR", where)[np.newaxis]


def _stated(about: About, net: str) -> Preprocessing:
    if about.preprocessing is None:
        raise DataError(
            f"net {net!r}: nothing says how its images are prepared; give preprocessing=Preprocessing(size=..., "
            "mean_value=...)",
            option="preprocessing",
        )
    return about.preprocessing


def _stacked(listed: list[Any], wanted: str, order: str) -> np.ndarray:
    """Return images unprepared, uint8 N x height x width x 3 in ``wanted`` order, for a net that prepares them."""
    pixels = [
        _pixels(image, order, f"image {index + 1} of {len(listed)}") for index, image in enumerate(listed)
    ]
    sizes = {one.shape[:2] for one in pixels}
    if len(sizes) > 1:
        shown = ", ".join("x".join(map(str, size)) for size in sorted(sizes)[:3])
        raise DataError(f"images of several sizes ({shown}) cannot form a batch; give them one at a time")
    return stack_pixels(pixels, wanted)


def stack_pixels(pixels: list[np.ndarray], wanted: str) -> np.ndarray:
    """Return pixels of one size, in BGR, as uint8 N x height x width x 3 in ``wanted`` order."""
    stacked = np.stack(pixels) if pixels else np.empty((0, 1, 1, 3), np.uint8)
    return np.ascontiguousarray(stacked if wanted == "BGR" else stacked[..., ::-1])


def _pixels(image: Any, order: str, where: str) -> np.ndarray:
    found = _opened(image, order, where, upright=True)
    return found if isinstance(found, np.ndarray) else read_bgr(found)


def open_pixels(image: Any, where: str, *, upright: bool) -> np.ndarray:
    """Return an array in BGR, or a PIL image, as uint8 height x width x 3, BGR.  Raises DataError for anything else."""
    if isinstance(image, np.ndarray):
        return _bgr(image, "BGR", where)
    if is_pil(image):
        return _from_pil(image, where, upright=upright)
    raise DataError(f"{where}: is of type {_kind(image)}; give a path, a uint8 array or a PIL image")


def list_images(images: Any) -> list[Any]:
    """Return ``images`` as a list; a single image and a 4-D array are accepted.  Raises DataError for anything else."""
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, str | os.PathLike) or is_pil(images):
        return [images]
    if isinstance(images, bytes | Mapping) or not isinstance(images, Iterable) or _is_tensor(images):
        raise DataError(f"images: is of type {_kind(images)}; give paths, uint8 arrays or PIL images")
    return list(images)


def _prepare_one(how: Preprocessing, image: Any, order: str, where: str) -> np.ndarray:
    opened = _opened(image, order, where, upright=how.path == "crop")
    where = where if isinstance(opened, np.ndarray) else os.fsdecode(opened)
    try:
        return how(opened)
    except DataError as error:
        raise error if str(error).startswith(printable(where)) else DataError(f"{where}: {error}") from error


def _opened(image: Any, order: str, where: str, *, upright: bool) -> str | os.PathLike[str] | np.ndarray:
    """Return the path of an existing file, or pixels in BGR."""
    if isinstance(image, str | os.PathLike):
        if not os.path.isfile(image):
            is_folder = os.path.isdir(image)
            where = os.fsdecode(image) or "''"
            raise DataError(f"{where}: {'is a folder; give its files' if is_folder else 'no such file'}")
        return image
    return (
        _bgr(image, order, where)
        if isinstance(image, np.ndarray)
        else open_pixels(image, where, upright=upright)
    )


def _bgr(image: np.ndarray, order: str, where: str) -> np.ndarray:
    """Return an array as uint8 height x width x 3, BGR."""
    if image.dtype != np.uint8:
        raise DataError(
            f"{where}: values are {image.dtype}; give uint8 from 0 to 255 (pass a prepared blob to the net itself)"
        )
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise DataError(f"{where}: shape {image.shape}; give height x width, or height x width x 3")
    if not all(1 <= side <= LARGEST_SIDE for side in image.shape[:2]):
        raise DataError(f"{where}: shape {image.shape}; sides are from 1 to {LARGEST_SIDE}")
    pixels = np.atleast_3d(image)[:, :, :3]
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    return np.ascontiguousarray(pixels if order == "BGR" else pixels[:, :, ::-1])


# ---------------------------------------------------------------------------------------- PIL images

_ORIENTATION = 0x0112  # EXIF's tag
# The transform from stored pixels to the upright image, by the tag's value.
_UPRIGHT = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


def is_pil(image: Any) -> bool:
    """Return whether it is a PIL image, by its methods, since PIL may not be installed."""
    return isinstance(getattr(image, "mode", None), str) and callable(getattr(image, "convert", None))


def _from_pil(image: Any, where: str, *, upright: bool) -> np.ndarray:
    """Return a PIL image as BGR; ``upright`` applies its EXIF orientation, as decoding the file does."""
    where = getattr(image, "filename", "") or where
    if image.mode not in (
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBX",
        "RGBa",
        "CMYK",
        "YCbCr",
        "LAB",
        "HSV",
    ):
        raise DataError(f"{where}: PIL mode {image.mode} is not 8-bit; convert it to L or RGB")
    try:
        pixels = np.asarray(image.convert("RGB"))
        orientation = image.getexif().get(_ORIENTATION, 1) if upright and hasattr(image, "getexif") else 1
    except (OSError, ValueError, SyntaxError) as error:  # PIL decodes lazily
        raise DataError(f"{where}: cannot be decoded ({error}); give a JPEG or PNG") from error
    pixels = _UPRIGHT[orientation](pixels) if orientation in _UPRIGHT else pixels
    return _bgr(pixels, "RGB", where)


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch"


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
