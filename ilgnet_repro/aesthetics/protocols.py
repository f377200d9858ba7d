"""The named ways to test a two-class net on AVA: which images are read, and how they are prepared and counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..errors import IlgnetError
from ..reading.preprocessing import Preprocessing

RESIZE = 256  # the side of the images in the authors' databases
BATCH_SIZES = {"ava1": 50, "ava2": 48}  # of the authors' nets
OTHER_BATCH_SIZE = 50


@dataclass(frozen=True)
class Protocol:
    """``batches`` is how many are read, from the first row on and over again; None reads each image once.

    ``whole`` feeds whole images, resized, instead of a centre crop; ``crops`` is 1 or 10.
    """

    name: str
    batches: int | None
    whole: bool
    crops: int
    summary: str


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "published", 50, False, 1, "the first 50 batches in order, as the published figures were made"
        ),
        Protocol("full", None, False, 1, "every image once, centre crop"),
        Protocol("resize", None, True, 1, "every image once, whole, as the authors' test.py resizes it"),
        Protocol("tencrop", None, False, 10, "every image once, mean of ten crops"),
    )
}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name. Raises IlgnetError listing them otherwise."""
    try:
        return PROTOCOLS[name]
    except KeyError:
        raise IlgnetError(f"protocol {name!r} is unknown; use {', '.join(PROTOCOLS)}") from None


@dataclass(frozen=True, eq=False)
class Mean:
    """What is subtracted: a mean image (3, height, width), or one value per channel, blue first."""

    image: np.ndarray | None = None
    values: tuple[float, ...] = ()

    @property
    def channels(self) -> tuple[float, ...]:
        """One value per channel, that of the image where there is one."""
        if self.image is None:
            return self.values
        return tuple(float(value) for value in self.image.mean(axis=(1, 2), dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Preparation:
    """How a protocol makes a net's input of side ``side``: each image by itself, then a batch's views."""

    protocol: Protocol
    side: int
    mean: Mean
    resize: int = RESIZE

    def __post_init__(self) -> None:
        if not self.protocol.whole and self.stage[0] < self.side:
            raise IlgnetError(
                f"images of {self.stage[0]} pixels cannot be cropped to {self.side}; resize to more"
            )

    @property
    def stage(self) -> tuple[int, int]:
        """The size that images are resized to before the crop: the mean image's own, where there is one."""
        image = self.mean.image
        return (self.resize, self.resize) if image is None else (image.shape[1], image.shape[2])

    @property
    def one(self) -> Preprocessing:
        """The preparation of each single image."""
        size = (self.side, self.side)
        if self.protocol.whole:
            return Preprocessing(size=size, mean_value=self.mean.channels)
        crop = Preprocessing(
            size=size, path="crop", resize=self.stage, mean_image=self.mean.image,
            mean_value=() if self.mean.image is not None else self.mean.values,
        )  # fmt: skip
        return crop if self.protocol.crops == 1 else replace(crop, size=self.stage)

    def views(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """The inputs whose probabilities are averaged, each (N, 3, side, side).

        Of ten: the corners and the centre, then the same mirrored. The mean is subtracted already, so it stays with
        its place in the image, as in Caffe.
        """
        if self.protocol.crops == 1:
            yield images
            return
        height, width = (length - self.side for length in images.shape[2:])
        corners = [(0, 0), (0, width), (height, 0), (height, width), (height // 2, width // 2)]
        for flip in (1, -1):
            for top, left in corners:
                window = images[:, :, top : top + self.side, left : left + self.side]
                yield np.ascontiguousarray(window[..., ::flip])

    def describe(self) -> str:
        """One line for the report. It is part of a journal's key, so its spelling stays."""
        values = "/".join(f"{value:.6g}" for value in self.mean.channels) or "nothing"
        if self.protocol.whole:
            return f"whole image resized to {self.side} × {self.side}, minus the channel means {values}"
        off = "the mean image" if self.mean.image is not None else f"the channel means {values}"
        crops = "centre crop" if self.protocol.crops == 1 else "mean of ten crops"
        height, width = self.stage
        return f"resized to {height} × {width}, minus {off}, {crops} {self.side}"
