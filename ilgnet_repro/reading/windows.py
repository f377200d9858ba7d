"""Batches of windows for a WindowData layer: Caffe's sampling, expansion, warping and padding."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from .. import opencv as cv2
from ..caffe.fork_fields import refusal
from ..caffe.graph import Node
from ..caffe.named_files import NamedFiles
from ..errors import DataError, LayerError
from .image_list import find_image
from .images import decode, read_image
from .mean import read_mean
from .sources import Row
from .window_file import read_windows

_COLOURS = 3  # images are read in colour
_NOT_READ = ("crop_size", "mirror", "mean_file")  # of window_data_param, once V1 layers are upgraded


class Sample(NamedTuple):
    """What Caffe draws for one place of a batch: a window by its draw, and whether it is mirrored."""

    is_foreground: bool
    draw: int
    is_mirrored: bool


class WindowSource:
    """The windows of a WindowData layer's file; ``row`` makes the tops of one."""

    def __init__(self, node: Node, files: NamedFiles) -> None:
        self._where = f"{node.name} ({node.type})"
        param, transform = node.layer.window_data_param, node.layer.transform_param
        self._check(node, files)
        self.size: int = transform.crop_size
        self.mirror: bool = transform.mirror
        self.pad: int = param.context_pad
        self.square = param.crop_mode == "square"
        self.scale = np.float32(param.scale)
        path = files.find(param.source)
        self.windows = read_windows(path, param.fg_threshold, param.bg_threshold)
        if self.windows.channels != _COLOURS:
            raise DataError(
                f"{path}: states {self.windows.channels} channels; images are read in colour, so state {_COLOURS}"
            )
        batch = int(param.batch_size)
        self.foreground = int(np.float32(batch) * np.float32(param.fg_fraction))  # of a batch, at its end
        if not 0 <= self.foreground <= batch:
            raise self._error(f"fg_fraction {param.fg_fraction:g} must be from 0 to 1")
        for kind, windows in (
            ("foreground", self.windows.foreground),
            ("background", self.windows.background),
        ):
            if not len(windows):
                raise DataError(
                    f"{path}: has no {kind} windows (fg_threshold {param.fg_threshold:g}, bg_threshold "
                    f"{param.bg_threshold:g}); change the thresholds"
                )
        folder = files.beside(path)
        root = param.root_folder
        first = folder.first(root + self.windows.images[0], os.path.lexists)
        self._base = str(first).removesuffix(root + self.windows.images[0]) or "."
        self._root = root
        self._mean = self._read_mean(node, files)
        self._cache: dict[int, bytes] | None = {} if param.cache_images else None

    def _error(self, what: str) -> LayerError:
        name, _, type_ = self._where.removesuffix(")").rpartition(" (")
        return LayerError(name, type_, what)

    def _check(self, node: Node, files: NamedFiles) -> None:
        param, transform = node.layer.window_data_param, node.layer.transform_param
        for field in node.layer.fork_field:
            if field.path.startswith("transform_param."):
                raise LayerError(
                    node.name, node.type, refusal(field, node.layer.DESCRIPTOR), option="ignore_fields"
                )
        for name in _NOT_READ:
            if param.HasField(name):
                raise self._error(f"{name} of window_data_param is not read; put it into transform_param")
        if not transform.crop_size:
            raise self._error("crop_size is 0 or absent; set transform_param.crop_size")
        if param.crop_mode not in ("warp", "square"):
            raise self._error(f"crop_mode {param.crop_mode!r} is unknown; use warp or square")
        if 2 * param.context_pad >= transform.crop_size:
            raise self._error(
                f"context_pad {param.context_pad} leaves nothing of crop_size {transform.crop_size}; set it below half of it"
            )
        if transform.scale != 1:
            files.note(
                f"{self._where}: transform_param.scale {transform.scale:g} is not applied, as in Caffe; scale of "
                "window_data_param is"
            )

    def _read_mean(self, node: Node, files: NamedFiles) -> np.ndarray | None:
        """The mean at each place of a window: the centre of a mean image by its width, as Caffe takes it."""
        transform, size = node.layer.transform_param, self.size
        values = list(transform.mean_value)
        if transform.mean_file and values:
            raise self._error("mean_file and mean_value cannot both be given; omit one")
        if values:
            if len(values) not in (1, _COLOURS):
                raise self._error(f"{len(values)} mean_values for {_COLOURS} channels; give 1 or {_COLOURS}")
            return np.broadcast_to(np.array(values, np.float32).reshape(-1, 1, 1), (_COLOURS, size, size))
        if not transform.mean_file:
            return None
        path = files.find(transform.mean_file)
        mean = read_mean(path)
        offset = (mean.shape[2] - size) // 2
        if mean.shape[0] != _COLOURS or offset < 0 or mean.shape[1] < offset + size:
            sides = "x".join(map(str, mean.shape))
            raise DataError(
                f"{path}: is {sides}; {self._where} takes the mean of windows of {_COLOURS}x{size}x{size} from its centre"
            )
        return mean[:, offset : offset + size, offset : offset + size].astype(np.float32)

    def row(self, sample: Sample) -> Row:
        """Return the pixels and the class of a window."""
        windows = self.windows.foreground if sample.is_foreground else self.windows.background
        image, label, *corners = windows[sample.draw % len(windows)].tolist()
        return self._pixels(image, corners, sample.is_mirrored), float(label)

    def image_path(self, image: int) -> str:
        """The path of an image file: root_folder and the name, as Caffe joins them."""
        return find_image("", self._root + self.windows.images[image], self._base)

    def _read_image(self, image: int) -> np.ndarray:
        path = self.image_path(image)
        if self._cache is None:
            return read_image(path)
        data = self._cache.get(image)
        if data is None:
            decoded = read_image(path)
            with open(path, "rb") as file:
                self._cache[image] = file.read()
            return decoded
        cached = decode(data, cv2.IMREAD_COLOR)
        return read_image(path) if cached is None else cached

    def _pixels(self, image: int, corners: list[int], mirrored: bool) -> np.ndarray:
        pixels = self._read_image(image)
        rows, columns = pixels.shape[:2]
        size = self.size
        x1, y1, x2, y2 = corners
        width = height = size
        left = top = 0
        if self.pad or self.square:
            x1, y1, x2, y2 = self._expand(x1, y1, x2, y2)
            sides_x, sides_y = (
                np.float32(size) / np.float32(x2 - x1 + 1),
                np.float32(size) / np.float32(y2 - y1 + 1),
            )
            over_left, over_top = max(0, -x1), max(0, -y1)
            over_right, over_bottom = max(0, x2 - columns + 1), max(0, y2 - rows + 1)
            x1, x2, y1, y2 = x1 + over_left, x2 - over_right, y1 + over_top, y2 - over_bottom
            width = _round(np.float32(x2 - x1 + 1) * sides_x)
            height = _round(np.float32(y2 - y1 + 1) * sides_y)
            # A mirrored window has its padding mirrored too.
            left = _round(np.float32(over_right if mirrored else over_left) * sides_x)
            top = _round(np.float32(over_top) * sides_y)
            width, height = min(width, size - left), min(height, size - top)
        if not (0 <= x1 <= x2 < columns and 0 <= y1 <= y2 < rows and width > 0 and height > 0):
            raise DataError(
                f"{self.image_path(image)}: window {' '.join(map(str, corners))} is not in the image of "
                f"{columns}x{rows} pixels; correct the window file"
            )
        warped = cv2.resize(pixels[y1 : y2 + 1, x1 : x2 + 1], (width, height), interpolation=cv2.INTER_LINEAR)
        if mirrored:
            warped = warped[:, ::-1]
        out = np.zeros((_COLOURS, size, size), np.float32)  # what is outside the image stays 0
        inside = out[:, top : top + height, left : left + width]
        inside[...] = warped.transpose(2, 0, 1)
        if self._mean is not None:
            inside -= self._mean[:, top : top + height, left : left + width]
        inside *= self.scale
        return out

    def _expand(self, x1: int, y1: int, x2: int, y2: int) -> tuple[int, int, int, int]:
        """Expand a window so that context_pad pixels of its surroundings are on each side once it is warped."""
        factor = np.float32(self.size) / np.float32(self.size - 2 * self.pad)
        half_height, half_width = np.float32((y2 - y1 + 1) / 2), np.float32((x2 - x1 + 1) / 2)
        x, y = np.float32(x1) + half_width, np.float32(y1) + half_height
        if self.square:
            half_height = half_width = max(half_height, half_width)
        return (
            _round(x - half_width * factor), _round(y - half_height * factor),
            _round(x + half_width * factor), _round(y + half_height * factor),
        )  # fmt: skip


def _round(value: np.float32) -> int:
    """C's `round`: halves away from zero."""
    return int(math.copysign(math.floor(abs(float(value)) + 0.5), float(value)))


class Draws:
    """The numbers of a 32-bit Mersenne twister (Caffe's generator) by position, mostly read in order."""

    _BLOCK = 1 << 20

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._restart()

    def _restart(self) -> None:
        # RandomState seeds as mt19937 does; random_raw is its plain sequence of 32-bit numbers.
        self._generator = np.random.RandomState(self._seed)._bit_generator
        self._next = 0

    def at(self, position: int, count: int) -> list[int]:
        """Return ``count`` numbers from a position on."""
        if position < self._next:
            self._restart()
        while self._next < position:
            skipped = min(position - self._next, self._BLOCK)
            self._generator.random_raw(skipped)
            self._next += skipped
        self._next += count
        return [int(draw) for draw in np.atleast_1d(self._generator.random_raw(count))]


def prefetch_seed(node: Node, seed: int, *, is_first: bool) -> int:
    """Return the seed of a layer's own generator.

    Caffe draws it from the solver's generator when the layer is set up.  Before the first layer of the train net only
    the layer's transformer has drawn, where it needs to; for other layers it depends on all fillers before them, and
    here on the seed and the name of the layer.
    """
    if is_first and node.phase == "TRAIN":
        return Draws(seed).at(1, 1)[0]  # crop_size is set, so the transformer has drawn once
    key = [seed, *node.name.encode("utf-8", "surrogatepass")]
    return int(np.random.default_rng(key).integers(2**32))


def samples(
    source: WindowSource, batch_size: int, draws: Draws, positions: Iterable[int]
) -> Iterator[Sample]:
    """Yield what Caffe draws for each position of the layer's batches: background windows, then foreground."""
    each = 2 if source.mirror else 1
    for position in positions:
        numbers = draws.at(position * each, each)
        is_foreground = position % batch_size >= batch_size - source.foreground
        yield Sample(is_foreground, numbers[0], source.mirror and bool(numbers[1] % 2))
