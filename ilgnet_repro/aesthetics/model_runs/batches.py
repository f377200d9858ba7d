"""Batches of a split: which rows, and their images as tensors, the same for the same seed and epoch on any machine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ... import opencv as cv2
from ...errors import DataError
from ...reading.parallel import ordered_map
from ...reading.preprocessing import Preprocessing, read_bgr
from ..datasets.splits import Rows
from ..models.backbones import IMAGENET

LEAST_PER_PROCESS = 2  # batch statistics need two rows


def epoch_batches(count: int, batch: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return an epoch's batches of row numbers: a new order each epoch, in parts of nearly equal size, ``batch`` at most.

    No part is so small that batch statistics fail, and no row is left out.
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return list(np.array_split(order, -(-count // batch)))


def check_batches(count: int, batch: int, processes: int) -> None:
    """Raise DataError where a process would have fewer than two rows of a batch."""
    smallest = count // -(-count // batch)
    if smallest < LEAST_PER_PROCESS * processes:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise DataError(
            f"{count} training rows in batches of at most {batch}: the smallest has {smallest} rows, and "
            f"{LEAST_PER_PROCESS} are needed{each}; change --batch-size"
        )


@dataclass(frozen=True)
class Inputs:
    """Reads a split's inputs: images by their paths, or the features of the rows.

    ``size`` is the side of the input, ``resize`` that of the image before the crop; ``how`` states the model's order of
    channels, mean, scale and deviation.
    """

    rows: Rows
    paths: Sequence[Path] = ()
    size: int = 224
    resize: int = 256
    workers: int = 0
    how: Preprocessing = field(default=IMAGENET, repr=False)

    def training(self, batches: Sequence[np.ndarray], seed: int, epoch: int) -> Iterator[Tensor]:
        """Yield the inputs of each batch, cropped and mirrored at random by seed, epoch and row."""

        def crop(row: int) -> tuple[int, int, bool]:
            random = np.random.default_rng([seed, epoch, row])
            top, left = random.integers(self.resize - self.size + 1, size=2)
            return int(top), int(left), bool(random.integers(2))

        yield from self._read(batches, crop)

    def testing(self, batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """Yield the inputs of each batch, the centre of each image."""
        offset = (self.resize - self.size) // 2
        yield from self._read(batches, lambda row: (offset, offset, False))

    def _read(
        self, batches: Sequence[np.ndarray], crop: Callable[[int], tuple[int, int, bool]]
    ) -> Generator[Tensor]:
        if self.rows.inputs is not None:
            for numbers in batches:
                yield torch.from_numpy(self.rows.inputs[numbers])
            return
        rows = (int(row) for numbers in batches for row in numbers)
        images = ordered_map(lambda row: self._image(row, *crop(row)), rows, self.workers or 1)
        for numbers in batches:
            yield torch.from_numpy(np.stack([next(images) for _ in numbers]))

    def _image(self, row: int, top: int, left: int, mirrored: bool) -> np.ndarray:
        pixels = read_bgr(self.paths[row])
        if pixels.shape[:2] != (self.resize, self.resize):
            pixels = cv2.resize(pixels, (self.resize, self.resize))
        part = pixels[top : top + self.size, left : left + self.size, ::-1]
        return self.normalized(part[:, ::-1] if mirrored else part)

    def normalized(self, pixels: np.ndarray) -> np.ndarray:
        """Return RGB (height, width, 3) from 0 to 255 as the model takes it: float32 (3, height, width)."""
        how = self.how
        ordered = pixels.transpose(2, 0, 1)[:: -1 if how.order == "BGR" else 1].astype(np.float32)
        mean, deviation = (
            np.asarray(values or default, np.float32).reshape(-1, 1, 1)
            for values, default in ((how.mean_value, (0.0,)), (how.deviation, (1.0,)))
        )
        prepared: np.ndarray = (ordered - mean) * np.float32(how.scale) / deviation
        return prepared
