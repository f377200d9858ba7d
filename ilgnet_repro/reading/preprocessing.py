"""How images are prepared for a net, as a value that is stored in the converted file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import lt
from pathlib import Path
from typing import Any

import numpy as np

from .. import opencv as cv2
from ..errors import DataError
from ..files import json_text, parse_json
from .images import LARGEST_SIDE, decode_file, not_decoded
from .mean import read_mean
from .transforms import Transform

PATHS = ("whole", "crop")
ORDERS = ("BGR", "RGB")
GREY = "GRAY"  # the order of a net whose images have one channel
_LUMA = (
    0.2125,
    0.7154,
    0.0721,
)  # of red, green, blue: scikit-image's rgb2gray, which pycaffe's load_image calls
CHANNELS = 3
LARGEST_VALUE = 1e30  # of a mean or factor: products with pixels fit float32
LEAST_DEVIATION = 1e-30


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """From an image to a net's input.

    Path ``whole`` is pycaffe's Transformer: the whole image resized to ``size`` (height, width), minus
    ``mean_value``, times ``scale``.  Path ``crop`` is Caffe's Data layer: the image resized to
    ``resize``, minus ``mean_image`` (channels, height, width) or ``mean_value``, times ``scale``, its centre
    ``size`` crop taken; the crop is square unless it is the whole resized image.  Pixels range from 0 to
    255; ``mean_value`` and ``mean_image`` are in ``order``, and so is ``deviation``, one number per channel by
    which nets of other frameworks divide last (Caffe's do not).
    """

    size: tuple[int, int]
    path: str = "whole"
    resize: tuple[int, int] | None = None
    order: str = "BGR"
    mean_value: tuple[float, ...] = ()
    mean_image: np.ndarray | None = None
    scale: float = 1.0
    deviation: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("size", "resize"):
            _check_sides(name, getattr(self, name))
        if self.order not in (*ORDERS, GREY):
            raise DataError(f"channel order {self.order!r}: is one of {', '.join((*ORDERS, GREY))}")
        _check_numbers("mean_value", self.mean_value, (0, 1, self.channels))
        _check_numbers("scale", (self.scale,), (1,))
        if self.scale == 0:
            raise DataError("preprocessing: scale 0 makes every image the same; give another factor")
        _check_numbers("deviation", self.deviation, (0, 1, self.channels))
        if any(not abs(value) >= LEAST_DEVIATION for value in self.deviation):
            raise DataError(
                f"preprocessing: deviation {_short(min(self.deviation, key=abs))}: give numbers of at least "
                f"{LEAST_DEVIATION:g}"
            )
        if self.mean_image is not None:
            _check_mean_image(self.mean_image, self.channels)
            if len(self.mean_value):
                raise DataError("preprocessing: a mean image and mean_value cannot both be given; omit one")
        if self.path not in PATHS:
            raise DataError(f"preprocessing path {self.path!r}: is one of {', '.join(PATHS)}")
        if self.path == "crop" and self.size[0] != self.size[1] and self.size != self.resize:
            raise DataError(f"crop of {self.size[0]}x{self.size[1]}: Caffe's crop is square")
        if self.path == "whole" and self.resize is not None:
            raise DataError("preprocessing: resize goes with the path crop; the path whole resizes to size")
        if self.path == "crop" and self.resize is not None and any(map(lt, self.resize, self.size)):
            sides = "x".join(map(str, self.resize))
            wanted = self.size[0] if len(set(self.size)) == 1 else "x".join(map(str, self.size))
            raise DataError(
                f"preprocessing: images of {sides} are smaller than the crop of {wanted}; increase resize"
            )
        if self.mean_image is not None and self.path != "crop":
            raise DataError("a mean image goes with the path crop; the path whole takes one mean per channel")

    def __call__(self, image: str | os.PathLike[str] | np.ndarray) -> np.ndarray:
        """Prepare a file, or uint8 (height, width, 3) in BGR, as float32 (channels, height, width).

        Raises DataError if the file is not an image, or the array not of three channels.
        """
        if isinstance(image, np.ndarray) and (image.ndim != 3 or image.shape[2] != 3 or not image.size):
            raise DataError(f"image of shape {list(image.shape)}: give (height, width, 3) in BGR")
        if isinstance(image, np.ndarray):
            return self.prepare_pixels(image)
        if self.path == "whole":
            return self.prepare_pixels(_decode(image))
        return self.prepare_pixels(read_grey(image)[..., None] if self.order == GREY else read_bgr(image))

    def prepare_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Prepare decoded pixels, integers (height, width, channels) in OpenCV's BGR, as a call does.

        The path whole takes 8 or 16 bits and 1, 3 or 4 channels, the path crop 8 bits and 3 channels or, in the order
        GRAY, 1.
        """
        if self.path == "whole":
            if self.order == GREY:
                values = preprocess(grey_to_unit(pixels), self.size, (0.0,))
            else:
                resized = _resize_bgr(pixels, self.size)
                values = (resized if self.order == "BGR" else resized[::-1]) * np.float32(255)
            values -= self._channel_mean()[:, None, None]
            values *= np.float32(self.scale)
            return self._divided(values)
        if self.order == GREY and pixels.shape[2] == 3:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)[..., None]
        return self._divided(self._transform()(self._resized(pixels)))

    @property
    def channels(self) -> int:
        """The channels of the input: 3, or 1 in the order GRAY."""
        return 1 if self.order == GREY else CHANNELS

    def _resized(self, pixels: np.ndarray) -> np.ndarray:
        if self.resize is not None and pixels.shape[:2] != self.resize:
            pixels = cv2.resize(pixels, self.resize[::-1])
        chw = np.atleast_3d(pixels).transpose(2, 0, 1)
        return chw[::-1] if self.order == "RGB" else chw

    def _channel_mean(self) -> np.ndarray:
        return np.broadcast_to(np.asarray(self.mean_value or (0.0,), np.float32), (self.channels,))

    def _divided(self, values: np.ndarray) -> np.ndarray:
        if not self.deviation:
            return values
        divided: np.ndarray = values / np.asarray(self.deviation, np.float32)[:, None, None]
        return divided

    def _transform(self) -> Transform:
        return Transform(
            crop_size=0 if self.size == self.resize else self.size[0],
            mean=self.mean_image,
            mean_values=() if self.mean_image is not None else self.mean_value,
            scale=self.scale,
        )

    def with_mean_file(self, path: str | os.PathLike[str]) -> Preprocessing:
        """Return the crop path with a mean image, images resized to its size.

        Raises DataError if the file contradicts the other fields.
        """
        mean = read_mean(Path(path))
        if len(self.mean_value):
            raise DataError(f"{path}: a mean image and mean_value cannot both be given; omit one")
        if self.resize is not None and self.resize != mean.shape[1:]:
            sides = ["x".join(map(str, shape)) for shape in (mean.shape[1:], self.resize)]
            raise DataError(f"{path}: is {sides[0]} and resize is {sides[1]}; omit resize")
        try:
            _check_mean_image(mean, self.channels)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        return replace(self, path="crop", resize=mean.shape[1:], mean_image=mean, mean_value=())

    def describe(self) -> str:
        """A one-line description."""
        size, resize = ("x".join(map(str, sides)) for sides in (self.size, self.resize or ()))
        steps = [f"image resized to {resize or size}"] if resize or self.path == "whole" else []
        if self.path == "crop" and self.size != self.resize:
            steps.append(f"centre crop of {size}")
        mean = ", ".join(f"{value:g}" for value in self.mean_value)
        if self.mean_image is not None:
            mean = "a mean image"
        steps.append(f"{self.order} minus {mean}" if mean else self.order)
        if self.scale != 1:
            steps.append(f"times {self.scale:g}")
        if self.deviation:
            steps.append(f"divided by {', '.join(f'{value:g}' for value in self.deviation)}")
        return ", ".join(steps)

    def to_json(self) -> str:
        """As JSON; the mean image is stored separately, as a tensor."""
        fields: dict[str, Any] = {
            "size": self.size, "path": self.path, "resize": self.resize, "order": self.order,
            "mean_value": tuple(map(float, self.mean_value)), "scale": float(self.scale),
            "has_mean_image": self.mean_image is not None,
            **({"deviation": tuple(map(float, self.deviation))} if self.deviation else {}),
        }  # fmt: skip
        return json_text(fields)

    @classmethod
    def from_json(cls, text: str, mean_image: np.ndarray | None = None) -> Preprocessing:
        """Read what `to_json` wrote.  Raises DataError on anything else."""
        try:
            fields = parse_json(text)
            if fields.pop("has_mean_image") and mean_image is None:
                raise DataError("preprocessing: names a mean image that the file does not contain")
            for key in ("size", "resize", "mean_value", *(("deviation",) if "deviation" in fields else ())):
                fields[key] = tuple(fields[key]) if fields[key] is not None else None
            if fields["path"] == "whole":  # files of earlier versions may have an unused resize
                fields["resize"] = None
            return cls(**fields, mean_image=mean_image)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"preprocessing: not written by this package ({error})") from error


def _check_sides(name: str, sides: object) -> None:
    if name == "resize" and sides is None:
        return
    if not (
        isinstance(sides, tuple)
        and len(sides) == 2
        and all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in sides)
    ):
        raise DataError(
            f"preprocessing: {name} {_short(sides)}: give two integers (height, width) from 1 to {LARGEST_SIDE}"
        )


def _check_numbers(name: str, values: object, counts: tuple[int, ...]) -> None:
    """Raise DataError unless ``values`` is a tuple of finite numbers whose length is one of ``counts``."""
    if not isinstance(values, tuple) or len(values) not in counts:
        one_or_all = "no number, one, or one per channel (blue, green, red)"
        raise DataError(f"preprocessing: {name} {_short(values)}: give {one_or_all}")
    for value in values:
        number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        if not number or not abs(value) <= LARGEST_VALUE:  # also refuses NaN
            raise DataError(f"preprocessing: {name} {_short(value)}: give finite numbers")


def _check_mean_image(mean: object, channels: int) -> None:
    if not isinstance(mean, np.ndarray) or mean.ndim != 3 or mean.shape[0] != channels or 0 in mean.shape:
        shape = getattr(mean, "shape", type(mean).__name__)
        kind = "colour" if channels == CHANNELS else "grey"
        raise DataError(f"mean image of shape {shape}: {kind} images need ({channels}, height, width)")
    if mean.dtype.kind not in "fiu" or not np.isfinite(mean).all():
        raise DataError("mean image: some values are not finite numbers; compute it again")


def _short(value: object) -> str:
    return repr(value)[:60]


def read_bgr(path: str | os.PathLike[str]) -> np.ndarray:
    """Decode an image file to uint8 (height, width, 3) in BGR.  Raises DataError if it is not an image."""
    pixels = decode_file(path, cv2.IMREAD_COLOR)
    if pixels is None:
        raise not_an_image(path, not_decoded(path))
    return pixels


def read_grey(path: str | os.PathLike[str]) -> np.ndarray:
    """Decode an image file to uint8 (height, width), as `convert_imageset --gray` does."""
    pixels = decode_file(path, cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise not_an_image(path, not_decoded(path))
    return pixels


def not_an_image(path: str | os.PathLike[str], reason: str) -> DataError:
    """Return the error for a file that cannot be decoded, for a reason of `not_decoded`."""
    reason = "is not an image that can be decoded" if reason == "cannot be decoded" else reason
    remedy = "shrink it" if reason.startswith("states ") else "give a JPEG or PNG"
    return DataError(f"{path}: {reason}; {remedy}")


def load_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as pycaffe's ``io.load_image`` returns it: RGB float32 (height, width, 3) in [0, 1].

    A grey image is repeated to three channels, transparency dropped, 16 bits divided by 65,535, and EXIF orientation
    not applied. Raises DataError if the file is not an image.
    """
    return bgr_to_unit(_decode(path))


def load_grey(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as ``io.load_image(color=False)`` returns it: float32 (height, width, 1) in [0, 1]."""
    return grey_to_unit(_decode(path))


def _decode(path: str | os.PathLike[str]) -> np.ndarray:
    """Decode an image file to integers (height, width, channels), as stored."""
    image = decode_file(path, cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise not_an_image(path, not_decoded(path))
    return np.atleast_3d(image)


def grey_to_unit(image: np.ndarray) -> np.ndarray:
    """Integers (height, width, 1, 3 or 4) in OpenCV's BGR as ``io.load_image(color=False)``: float32 (height, width, 1)."""
    unit = image / np.float64(np.iinfo(image.dtype).max)
    grey = unit if image.shape[2] == 1 else (unit[:, :, 2::-1] @ np.array(_LUMA))[:, :, None]
    return grey.astype(np.float32)


def bgr_to_unit(image: np.ndarray) -> np.ndarray:
    """Integers (height, width, 1, 3 or 4) in OpenCV's BGR as RGB float32 in [0, 1]."""
    if image.shape[2] == 1:
        image = image.repeat(3, axis=2)
    # Divided in float64 and rounded once, as scikit-image's img_as_float followed by astype(float32).
    return (image[:, :, 2::-1] / np.float64(np.iinfo(image.dtype).max)).astype(np.float32)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (height, width, channels) to ``size`` as pycaffe's ``io.resize_image`` does, as float32.

    Bilinear with half-pixel centres and no antialiasing. When enlarging, the outermost samples are outside the
    image and are interpolated with its *minimum*: pycaffe rescales the image to [0, 1] and scikit-image's
    ``mode='constant'`` fills with 0.
    """
    image = np.asarray(image, np.float32)
    if image.ndim != 3 or min(*image.shape, *size) < 1:
        raise DataError(
            f"image of shape {image.shape} to {size}: needs (height, width, channels), none of them 0"
        )
    low, high = image.min(), image.max()
    if low == high:
        return np.full((*size, image.shape[2]), low, np.float32)
    unit = ((image - low) / (high - low)).astype(np.float64)
    rows = _resample(unit, size[0])
    both = _resample(rows.transpose(1, 0, 2), size[1]).transpose(1, 0, 2)
    resized: np.ndarray = (both * (high - low) + low).astype(np.float32)
    return resized


def _resize_bgr(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`resize_image` of `bgr_to_unit` as BGR (3, height, width): the same numbers from the samples that are needed only.

    Every step before the interpolation is one of each value, so it is computed once for each of the integers.
    """
    if pixels.shape[:2] == tuple(size):
        return bgr_to_unit(pixels)[:, :, ::-1].transpose(2, 0, 1)
    if pixels.shape[2] > CHANNELS:
        pixels = pixels[:, :, :CHANNELS]
    height, width, channels = pixels.shape
    flat = pixels.reshape(height, width * channels)
    largest = np.iinfo(pixels.dtype).max
    unit = (np.arange(largest + 1) / np.float64(largest)).astype(np.float32)
    low, high = unit[flat.min()], unit[flat.max()]
    if low == high:
        return np.full((CHANNELS, *size), low, np.float32)
    values = ((unit - low) / (high - low)).astype(np.float64)
    (rows, row_weight), (columns, column_weight) = (
        _samples(length, side) for length, side in zip((height, width), size, strict=True)
    )
    of_channels = (columns[:, None] * channels + np.arange(channels)).ravel()
    taken = flat.take(rows, axis=0, mode="clip").take(of_channels, axis=1, mode="clip")
    found = cv2.LUT(taken, values) if taken.dtype == np.uint8 else values[taken]
    if rows[0] < 0 or rows[-1] >= height:
        found[(rows < 0) | (rows >= height)] = 0
    if columns[0] < 0 or columns[-1] >= width:
        found[:, np.repeat((columns < 0) | (columns >= width), channels)] = 0
    blended = _blend(found[: size[0]], found[size[0] :], row_weight[:, None])
    half = size[1] * channels
    blended = _blend(blended[:, :half], blended[:, half:], column_weight.repeat(channels))
    blended *= high - low
    blended += low
    resized = np.ascontiguousarray(blended.astype(np.float32).reshape(*size, channels).transpose(2, 0, 1))
    return resized if channels == CHANNELS else resized.repeat(CHANNELS, axis=0)


def _samples(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The samples before and then after each of ``size`` points (-1 and ``length`` are outside), and the second's weight."""
    below, weight = _centres(length, size)
    return np.concatenate([below, below + 1]), weight


def _blend(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """``first * (1 - weight) + second * weight``, computed in their own memory."""
    first *= 1 - weight
    second *= weight
    first += second
    return first


def _centres(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The sample before each of ``size`` points with half-pixel centres, and the weight of the one after it."""
    centres = (np.arange(size) + 0.5) * (length / size) - 0.5
    below = np.floor(centres).astype(np.int64)
    return below, centres - below


def _resample(image: np.ndarray, size: int) -> np.ndarray:
    """Resample the first axis linearly to ``size`` points, with 0 outside it."""
    below, weight = _centres(image.shape[0], size)
    weight = weight.reshape(-1, *[1] * (image.ndim - 1))
    padded = np.concatenate([np.zeros_like(image[:1]), image, np.zeros_like(image[:1])])
    resampled: np.ndarray = padded[below + 1] * (1 - weight) + padded[below + 2] * weight
    return resampled


def preprocess(image: np.ndarray, size: tuple[int, int], channel_mean: Sequence[float]) -> np.ndarray:
    """Turn an RGB image in [0, 1] into the net's input: float32 (3, height, width), BGR times 255, minus the mean.

    ``channel_mean`` is in BGR. The steps and their order are those of pycaffe's ``Transformer.preprocess``.
    """
    mean = np.asarray(channel_mean, np.float32)
    if mean.shape != image.shape[2:]:
        wanted = "three numbers, blue first" if image.shape[2:] == (CHANNELS,) else "one number"
        raise DataError(f"channel mean of shape {mean.shape}: give {wanted}")
    if image.shape[:2] != tuple(size):
        image = resize_image(image, size)
    chw = image.transpose(2, 0, 1)[::-1].astype(np.float32)
    return chw * np.float32(255) - mean[:, None, None]
