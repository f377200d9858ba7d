"""`caffe.Classifier`: a net that classifies images, whole, by their centre, or by ten crops each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import io
from .failures import WrongCall, WrongValue
from .net import Net
from .phases import TEST

TEN = 10  # crops of an image


def transformer_for(
    net: Net,
    mean: np.ndarray | None,
    input_scale: float | None,
    raw_scale: float | None,
    channel_swap: Sequence[int] | None,
) -> io.Transformer:
    """Return a `Transformer` for a net's first input that puts the channels first, and what else is given."""
    in_ = net.inputs[0]
    transformer = io.Transformer({in_: net.blobs[in_].data.shape})
    transformer.set_transpose(in_, (2, 0, 1))
    if mean is not None:
        transformer.set_mean(in_, mean)
    if input_scale is not None:
        transformer.set_input_scale(in_, input_scale)
    if raw_scale is not None:
        transformer.set_raw_scale(in_, raw_scale)
    if channel_swap is not None:
        transformer.set_channel_swap(in_, channel_swap)
    return transformer


def check_images_net(net: Net) -> None:
    """Raise WrongValue unless the first input of a net is a batch of images."""
    shapes = [net.blobs[name].data.shape for name in net.inputs[:1]]
    if not shapes or len(shapes[0]) != 4:
        raise WrongValue(
            f"net {net.name!r}: its first input is not a batch of images; give a deploy net with one"
        )


class Classifier(Net):
    """A `Net` in the phase TEST that takes images as `io.load_image` returns them."""

    def __init__(
        self,
        model_file: str | os.PathLike[str],
        pretrained_file: str | os.PathLike[str],
        image_dims: Sequence[int] | None = None,
        mean: np.ndarray | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
    ) -> None:
        """Load the net; images are resized to ``image_dims`` (height, width), by default the size of the input."""
        super().__init__(model_file, TEST, weights=pretrained_file)
        check_images_net(self)
        self.transformer = transformer_for(self, mean, input_scale, raw_scale, channel_swap)
        self.crop_dims = np.array(self.blobs[self.inputs[0]].data.shape[2:])
        self.image_dims: Sequence[int] | np.ndarray = self.crop_dims if image_dims is None else image_dims
        if any(side < crop for side, crop in zip(self.image_dims, self.crop_dims, strict=True)):
            sides = ["x".join(map(str, one)) for one in (self.image_dims, self.crop_dims)]
            raise WrongValue(f"image_dims {sides[0]}: smaller than the net's input, {sides[1]}")

    def predict(self, inputs: Sequence[np.ndarray], oversample: bool = True) -> np.ndarray:
        """Return the first output for each image, (N, classes).

        With ``oversample`` it is the mean over the corners, the centre and their mirrored forms, otherwise that of the
        centre.
        """
        if isinstance(inputs, np.ndarray) and inputs.ndim == 3:
            raise WrongCall("inputs: is one image; give a list of images")
        if not len(inputs):
            raise WrongCall("inputs: no images; give at least one")
        in_ = self.inputs[0]
        sized = np.stack([io.resize_image(image, self.image_dims) for image in inputs])
        if oversample:
            crops = io.oversample(sized, self.crop_dims)
        else:
            top, left = (np.array(self.image_dims) - self.crop_dims) // 2
            crops = sized[:, top : top + self.crop_dims[0], left : left + self.crop_dims[1]]
        batch: dict[str, Any] = {in_: np.stack([self.transformer.preprocess(in_, crop) for crop in crops])}
        predictions = self.forward_all(**batch)[self.outputs[0]]
        if oversample:
            predictions = predictions.reshape(len(predictions) // TEN, TEN, -1).mean(1)
        return predictions
