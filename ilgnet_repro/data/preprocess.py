"""What is done to a picture before a net sees it, as a value that travels inside the converted file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import strict_json
from ..errors import DataError
from .images import decode_file
from .mean import read_mean
from .resize_path import bgr_to_unit, load_image, preprocess
from .transforms import Transform

PATHS = ("whole", "crop")
ORDERS = ("BGR", "RGB")


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """From a picture to a net's input.

    Path ``whole`` is pycaffe's Transformer: the whole picture resized to ``size`` (height, width), minus
    ``mean_value``, times ``scale``.  Path ``crop`` is Caffe's Data layer: the picture resized to
    ``resize``, minus ``mean_image`` (channels, height, width) or ``mean_value``, times ``scale``, its centre
    ``size`` cut out.  Pixels count from 0 to 255; ``mean_value`` and ``mean_image`` are in ``order``.
    """

    size: tuple[int, int]
    path: str = "whole"
    resize: tuple[int, int] | None = None
    order: str = "BGR"
    mean_value: tuple[float, ...] = ()
    mean_image: np.ndarray | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.path not in PATHS:
            raise DataError(f"preprocessing path {self.path!r}: is one of {', '.join(PATHS)}")
        if self.order not in ORDERS:
            raise DataError(f"channel order {self.order!r}: is one of {', '.join(ORDERS)}")
        if self.path == "crop" and self.size[0] != self.size[1]:
            raise DataError(f"crop of {self.size[0]}x{self.size[1]}: Caffe's crop is square")
        if self.mean_image is not None and self.path != "crop":
            raise DataError("a mean image goes with the path crop; the path whole takes one mean a channel")

    def __call__(self, picture: str | os.PathLike[str] | np.ndarray) -> np.ndarray:
        """A file, or uint8 (height, width, 3) in BGR, as float32 (3, height, width).

        Raises DataError if the file is no picture.
        """
        if self.path == "whole":
            unit = bgr_to_unit(picture) if isinstance(picture, np.ndarray) else load_image(picture)
            values = preprocess(unit, self.size, (0.0, 0.0, 0.0))
            values = values if self.order == "BGR" else values[::-1]
            return (values - self._channel_mean()[:, None, None]) * np.float32(self.scale)
        pixels = picture if isinstance(picture, np.ndarray) else _read_bgr(picture)
        return self._transform()(self._resized(pixels))

    def _resized(self, pixels: np.ndarray) -> np.ndarray:
        if self.resize is not None and pixels.shape[:2] != self.resize:
            import cv2

            pixels = cv2.resize(pixels, self.resize[::-1])
        chw = pixels.transpose(2, 0, 1)
        return chw if self.order == "BGR" else chw[::-1]

    def _channel_mean(self) -> np.ndarray:
        return np.broadcast_to(np.asarray(self.mean_value or (0.0,), np.float32), (3,))

    def _transform(self) -> Transform:
        return Transform(
            crop_size=self.size[0],
            mean=self.mean_image,
            mean_values=() if self.mean_image is not None else self.mean_value,
            scale=self.scale,
        )

    def with_mean_file(self, path: str | os.PathLike[str]) -> Preprocessing:
        """The crop path with a mean image, resized as the mean is."""
        mean = read_mean(Path(path))
        return replace(self, path="crop", resize=mean.shape[1:], mean_image=mean, mean_value=())

    def to_json(self) -> str:
        """As JSON; the mean image is kept apart, as a tensor."""
        fields: dict[str, Any] = {
            "size": self.size, "path": self.path, "resize": self.resize, "order": self.order,
            "mean_value": self.mean_value, "scale": self.scale, "has_mean_image": self.mean_image is not None,
        }  # fmt: skip
        return strict_json.dumps(fields)

    @classmethod
    def from_json(cls, text: str, mean_image: np.ndarray | None = None) -> Preprocessing:
        """Read what `to_json` wrote.  Raises DataError on anything else."""
        try:
            fields = json.loads(text)
            if fields.pop("has_mean_image") and mean_image is None:
                raise DataError("preprocessing: names a mean image that the file does not hold")
            for key in ("size", "resize", "mean_value"):
                fields[key] = tuple(fields[key]) if fields[key] is not None else None
            return cls(**fields, mean_image=mean_image)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"preprocessing: not as this package writes it ({error})") from error


def _read_bgr(path: str | os.PathLike[str]) -> np.ndarray:
    import cv2

    pixels = decode_file(path, cv2.IMREAD_COLOR)
    if pixels is None:
        raise DataError(f"{path}: is not a picture that can be decoded; give a JPEG or PNG")
    return pixels


# The means of the authors' two mean files, in BGR (FACTS §1): what their test.py takes off.
AVA_CHANNEL_MEANS = {"AVA1": (91.00, 99.46, 107.85), "AVA2": (90.05, 98.59, 107.51)}


def ilgnet_preprocessing(trained_on: str | None = None) -> Preprocessing:
    """The authors' second path, for weights trained on AVA1 or AVA2 (None: AVA1's mean)."""
    return Preprocessing(size=(227, 227), mean_value=AVA_CHANNEL_MEANS[trained_on or "AVA1"])
