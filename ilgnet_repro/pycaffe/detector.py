"""`caffe.Detector`: a net that classifies windows of images, as R-CNN does."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from ..errors import IlgnetError
from . import io
from .classifier import check_images_net, transformer_for
from .failures import WrongCall, WrongValue
from .net import Net
from .phases import TEST

Windows = Sequence[Sequence[int]] | np.ndarray


class Detector(Net):
    """A `Net` in the phase TEST that takes windows (top, left, bottom, right) of image files."""

    def __init__(
        self,
        model_file: str | os.PathLike[str],
        pretrained_file: str | os.PathLike[str],
        mean: np.ndarray | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
        context_pad: int | None = None,
    ) -> None:
        """Load the net; with ``context_pad`` windows are taken with that much around them, in pixels of the input."""
        super().__init__(model_file, TEST, weights=pretrained_file)
        check_images_net(self)
        self.transformer = transformer_for(self, mean, input_scale, raw_scale, channel_swap)
        self.configure_crop(context_pad)

    def detect_windows(self, images_windows: Iterable[tuple[str, Windows]]) -> list[dict[str, Any]]:
        """Return a dict of ``window``, ``prediction`` and ``filename`` for each window of each (file, windows)."""
        listed = [(filename, list(windows)) for filename, windows in images_windows]
        in_ = self.inputs[0]
        prepared = []
        for filename, windows in listed:
            image = io.load_image(filename)
            prepared += [self.transformer.preprocess(in_, self.crop(image, window)) for window in windows]
        if not prepared:
            return []
        batch: dict[str, Any] = {in_: np.stack(prepared)}
        predictions = iter(self.forward_all(**batch)[self.outputs[0]])
        return [
            {"window": window, "prediction": next(predictions), "filename": filename}
            for filename, windows in listed
            for window in windows
        ]

    def detect_selective_search(self, image_fnames: Iterable[str]) -> list[dict[str, Any]]:
        """Detect in the windows that Selective Search proposes, by the module that pycaffe imports for it."""
        try:
            search = import_module("selective_search_ijcv_with_python")
        except ImportError as error:
            raise IlgnetError(
                "selective search needs the module selective_search_ijcv_with_python and MATLAB, which are not "
                "installed; propose windows by another program and give them to detect_windows"
            ) from error
        paths = [os.path.abspath(name) for name in image_fnames]
        return self.detect_windows(zip(paths, search.get_windows(paths), strict=True))

    def crop(self, im: np.ndarray, window: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return a window of an image; with context padding it has the input's size, the mean filling what is outside."""
        box = np.asarray(window)
        if box.shape != (4,):
            raise WrongCall(f"window {window!r}: give (top, left, bottom, right)")
        top, left, bottom, right = (int(side) for side in box)
        cut = (
            im[max(top, 0) : bottom, max(left, 0) : right] if self.context_pad else im[top:bottom, left:right]
        )
        if not cut.size:
            sides = "x".join(map(str, im.shape[:2]))
            raise WrongValue(f"window {[top, left, bottom, right]}: has no pixel in an image of {sides}")
        return self._with_context(im, box) if self.context_pad else cut

    def _with_context(self, im: np.ndarray, window: np.ndarray) -> np.ndarray:
        size = int(self.blobs[self.inputs[0]].data.shape[3])
        scale = size / (size - 2.0 * self.context_pad)
        # The window grows about its centre; sides count both of their ends.
        half = (window[2:] - window[:2] + 1) / 2.0
        centre = window[:2] + half
        box = np.round(np.concatenate([centre - scale * half, centre + scale * half]))
        per_pixel = size / (box[2:] - box[:2] + 1)
        pad = [round(max(0.0, -start) * each) for start, each in zip(box[:2], per_pixel, strict=True)]
        box = np.clip(box, 0, [*im.shape[:2], *im.shape[:2]])
        inside = box[2:] - box[:2] + 1
        sides = [
            min(round(length * each), size - start)
            for length, each, start in zip(inside, per_pixel, pad, strict=True)
        ]
        top, left, bottom, right = box.astype(int)
        cropped = np.ones(self.crop_dims, np.float32) * self.crop_mean
        around = io.resize_image(im[top:bottom, left:right], sides)
        cropped[pad[0] : pad[0] + sides[0], pad[1] : pad[1] + sides[1]] = around
        return cropped

    def configure_crop(self, context_pad: int | None) -> None:
        """Set the context, and the mean as an image before the `Transformer`, which fills what is outside of images."""
        in_ = self.inputs[0]
        shape = self.blobs[in_].data.shape
        back = np.argsort(self.transformer.transpose[in_])
        self.crop_dims = np.array(shape[1:])[back]
        self.context_pad = context_pad or 0
        if not self.context_pad:
            return
        if shape[2] != shape[3] or not 0 < 2 * self.context_pad < shape[3]:
            sides = f"{shape[2]}x{shape[3]}"
            raise WrongValue(
                f"context_pad {context_pad}: needs a square input of over twice its size, not {sides}"
            )
        mean = self.transformer.mean.get(in_)
        if mean is None:
            self.crop_mean = np.zeros(self.crop_dims, np.float32)
            return
        crop_mean = np.array(mean, dtype=float).reshape((1,) * (3 - mean.ndim) + mean.shape).transpose(back)
        swap = self.transformer.channel_swap.get(in_)
        if swap is not None:
            crop_mean = crop_mean[:, :, np.argsort(swap)]
        self.crop_mean = crop_mean / self.transformer.raw_scale.get(in_, 1)
