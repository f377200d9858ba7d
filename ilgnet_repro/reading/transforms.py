"""Caffe's DataTransformer: crop, mean, scale and mirror, per image or per batch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..caffe.named_files import NamedFiles
from ..errors import DataError
from ..schema import caffe_pb2
from .mean import read_mean


class Draw(NamedTuple):
    """The random draws for N images: mirror flag, and top and left of the crop; int64, shape (N,)."""

    mirror: np.ndarray
    top: np.ndarray
    left: np.ndarray


@dataclass(frozen=True, eq=False)
class Transform:
    """``transform_param`` in one phase: (pixel - mean) * scale, cropped and mirrored.

    ``mean`` is a mean image (channels, height, width) of the same size as the images, cropped with them;
    ``mean_values`` is one number or one per channel; not both. At TEST the crop is central, an odd pixel
    remaining at the bottom and right; at TRAIN it is random. ``mirror`` is random in both phases, as in Caffe.
    ``colour`` is force_color (True) or force_gray (False), for the decoder of encoded rows.
    Raises DataError where Caffe would abort.
    """

    phase: str = "TEST"
    scale: float = 1.0
    crop_size: int = 0
    mirror: bool = False
    mean: np.ndarray | None = None
    mean_values: tuple[float, ...] = ()
    colour: bool | None = None

    def __post_init__(self) -> None:
        if self.phase not in ("TRAIN", "TEST"):
            raise DataError(f"phase {self.phase!r}: is TRAIN or TEST")
        if self.mean is not None and self.mean_values:
            raise DataError("transform_param: mean_file and mean_value cannot both be given; omit one")
        if self.mean is not None and self.mean.ndim != 3:
            raise DataError(f"mean of shape {self.mean.shape}: a mean image is (channels, height, width)")

    @classmethod
    def from_param(
        cls,
        param: caffe_pb2.TransformationParameter,
        phase: str,
        root: str | os.PathLike[str] | NamedFiles = ".",
    ) -> Transform:
        """The transform of a layer's ``transform_param``; ``mean_file`` is looked up in ``root``."""
        if param.force_color and param.force_gray:
            raise DataError("transform_param: force_color and force_gray cannot both be set; omit one")
        return cls(
            phase=phase,
            scale=param.scale,
            crop_size=param.crop_size,
            mirror=param.mirror,
            mean=read_mean(NamedFiles.of(root).find(param.mean_file)) if param.mean_file else None,
            mean_values=tuple(param.mean_value),
            colour=True if param.force_color else False if param.force_gray else None,
        )

    @property
    def random(self) -> bool:
        """Whether it draws random numbers and needs a generator."""
        return self.mirror or (self.phase == "TRAIN" and self.crop_size > 0)

    def draw(self, shape: tuple[int, int], count: int = 1, rng: np.random.Generator | None = None) -> Draw:
        """Draw mirror flags and crop offsets for ``count`` images of (height, width) ``shape``.

        Drawn per image, in Caffe's order (mirror, top, left): a batch of N draws the same numbers as
        N single images. Raises DataError if a generator is needed and missing.
        """
        slack = np.array([side - self.crop_size if self.crop_size else 0 for side in shape])
        if (slack < 0).any():
            raise DataError(f"crop_size {self.crop_size}: image is {shape[0]}x{shape[1]}; make it larger")
        fixed = np.array([0, *(slack // 2)])
        if not self.random:
            return Draw(*np.broadcast_to(fixed[:, None], (3, count)))
        if rng is None:
            raise DataError(
                "transform_param: a random crop or mirror needs a seeded numpy generator; give rng"
            )
        drawn = rng.integers(np.array([2, *(slack + 1)]), size=(count, 3))
        is_random = np.array([self.mirror, *[self.phase == "TRAIN"] * 2])
        return Draw(*np.where(is_random, drawn, fixed).T)

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Transform (channels, height, width), uint8 or float, to float32 (channels, crop, crop)."""
        transformed: np.ndarray = self.batch(image[None], rng)[0]
        return transformed

    def batch(self, images: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Transform (N, channels, height, width) to float32 (N, channels, crop, crop), all at once."""
        if images.ndim != 4:
            raise DataError(f"images of shape {images.shape}: a transform takes (channels, height, width)")
        draw = self.draw(images.shape[2:], len(images), rng)
        mean = self._mean(images.shape[1:])
        if self.crop_size:
            images = self._crop(images, draw)
            if mean is not None and mean.shape[2:] != (1, 1):
                mean = self._crop(np.broadcast_to(mean, (len(images), *mean.shape[1:])), draw)
        result = images.astype(np.float32)
        if mean is not None:
            result -= mean
        if self.scale != 1:
            result *= np.float32(self.scale)
        flipped = draw.mirror.astype(bool)
        # The mean is subtracted before mirroring: it belongs to the position in the image, not in the crop.
        result[flipped] = result[flipped, ..., ::-1]
        return result

    def _mean(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """The mean to subtract from an image of (channels, height, width), with a leading axis of 1."""
        if self.mean is not None:
            if self.mean.shape != shape:
                sizes = ["x".join(map(str, sides)) for sides in (self.mean.shape, shape)]
                raise DataError(
                    f"mean_file: is {sizes[0]} and the image {sizes[1]}; compute the mean of this data"
                )
            return self.mean[None].astype(np.float32, copy=False)
        if not self.mean_values:
            return None
        if len(self.mean_values) not in (1, shape[0]):
            raise DataError(
                f"mean_value: {len(self.mean_values)} values for {shape[0]} channels; give one, or {shape[0]}"
            )
        return np.array(self.mean_values, np.float32).reshape(1, -1, 1, 1)

    def _crop(self, arrays: np.ndarray, draw: Draw) -> np.ndarray:
        """Crop each array at its offset; a view if all offsets are the same."""
        size = self.crop_size
        if len(arrays) and (draw.top == draw.top[0]).all() and (draw.left == draw.left[0]).all():
            top, left = int(draw.top[0]), int(draw.left[0])
            return arrays[:, :, top : top + size, left : left + size]
        windows = np.lib.stride_tricks.sliding_window_view(arrays, (size, size), axis=(2, 3))
        return windows[np.arange(len(arrays)), :, draw.top, draw.left]
