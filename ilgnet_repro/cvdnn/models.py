"""OpenCV 4's `Model` classes: an image in, a class, boxes, a mask or points out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from ..errors import GraphError, IlgnetError
from .images import blobFromImage
from .net import DETECTIONS, Net
from .reading import readNet

_ROW = 7  # image, class, confidence, left, top, right, bottom
_SMALLEST = 2  # boxes of up to this many pixels are taken as fractions of the image, as in OpenCV


class Model:
    """A net and how an image becomes its input: ``Model(net)`` or ``Model(caffemodel, prototxt)``."""

    def __init__(self, model: Net | str | os.PathLike[str], config: str | os.PathLike[str] = "") -> None:
        """Take a net, or read one; the size of images is that of the first input until `setInputSize` is called."""
        self._net: Net = model if isinstance(model, Net) else readNet(os.fspath(model), os.fspath(config))
        if not isinstance(self._net, Net):
            raise IlgnetError(
                f"{model}: is not a net of Caffe; give it to cv2.dnn's own {type(self).__name__}"
            )
        if self._net.empty():
            raise GraphError("the net is empty; read one with readNetFromCaffe")
        self._size = self._net.image_size()
        self._scale = 1.0
        self._mean: Any = (0.0, 0.0, 0.0)
        self._swap, self._crop = False, False
        self._names: list[str] = list(self._net.getUnconnectedOutLayersNames())

    def setInputSize(self, *size: Any) -> Self:
        """Set the size that images are resized to: (width, height), as a tuple or as two numbers."""
        sides = size[0] if len(size) == 1 else size
        if len(sides) != 2:
            raise IlgnetError(f"size {sides!r}: give (width, height)")
        self._size = (int(sides[0]), int(sides[1]))
        return self

    def setInputMean(self, mean: Sequence[float] | float) -> Self:
        """Set the mean to subtract, per channel."""
        self._mean = mean
        return self

    def setInputScale(self, scale: Sequence[float] | float) -> Self:
        """Set the factor after the mean is subtracted."""
        self._scale = float(np.ravel(np.asarray(scale, dtype=float))[0])
        return self

    def setInputCrop(self, crop: bool) -> Self:
        """Set whether images are cropped to the shape of the input instead of distorted."""
        self._crop = bool(crop)
        return self

    def setInputSwapRB(self, swapRB: bool) -> Self:
        """Set whether red and blue are exchanged."""
        self._swap = bool(swapRB)
        return self

    def setInputParams(
        self,
        scale: float = 1.0,
        size: Sequence[int] = (0, 0),
        mean: Sequence[float] | float = (0.0, 0.0, 0.0),
        swapRB: bool = False,
        crop: bool = False,
    ) -> None:
        """Set all of them."""
        self.setInputScale(scale).setInputSize(size).setInputMean(mean).setInputSwapRB(swapRB).setInputCrop(
            crop
        )

    def setOutputNames(self, outNames: Iterable[str]) -> Self:
        """Set the layers whose outputs `predict` returns."""
        self._names = list(outNames)
        return self

    def setPreferableBackend(self, backendId: int) -> Self:
        """As `Net.setPreferableBackend`."""
        self._net.setPreferableBackend(backendId)
        return self

    def setPreferableTarget(self, targetId: int) -> Self:
        """As `Net.setPreferableTarget`."""
        self._net.setPreferableTarget(targetId)
        return self

    def enableWinograd(self, useWinograd: bool) -> Self:
        """As `Net.enableWinograd`."""
        self._net.enableWinograd(useWinograd)
        return self

    def predict(self, frame: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the outputs for an image as `cv2.imread` gives it."""
        blob = blobFromImage(frame, self._scale, self._size, self._mean, self._swap, self._crop)
        self._net.setInput(blob)
        if self._has_im_info():
            # The height and width of the input, and how much the image was enlarged: OpenCV states 1.6.
            self._net.setInput(np.array([[self._size[1], self._size[0], 1.6]], np.float32), "im_info")
        outputs: tuple[np.ndarray, ...] = self._net.forward(self._names)
        return outputs

    def _has_im_info(self) -> bool:
        return self._net.getLayer(0).outputNameToIndex("im_info") >= 0


class ClassificationModel(Model):
    """A net whose first output are the scores of classes."""

    _softmax = False

    def setEnableSoftmaxPostProcessing(self, enable: bool) -> ClassificationModel:
        """Set whether the scores become probabilities, for nets that end without a Softmax."""
        self._softmax = bool(enable)
        return self

    def getEnableSoftmaxPostProcessing(self) -> bool:
        """Whether they do."""
        return self._softmax

    def classify(self, frame: np.ndarray) -> tuple[int, float]:
        """Return the class with the highest score, and that score."""
        scores = self.predict(frame)[0].ravel()
        if self._softmax:
            scores = np.exp(scores - scores.max())
            scores /= scores.sum()
        best = int(scores.argmax())
        return best, float(scores[best])


class DetectionModel(Model):
    """A net that ends in a DetectionOutput layer."""

    _across = False

    def setNmsAcrossClasses(self, value: bool) -> DetectionModel:
        """Accept it: DetectionOutput, which suppresses boxes class by class, does not read it, as in OpenCV."""
        self._across = bool(value)
        return self

    def getNmsAcrossClasses(self) -> bool:
        """What was set."""
        return self._across

    def detect(
        self, frame: np.ndarray, confThreshold: float = 0.5, nmsThreshold: float = 0.0
    ) -> tuple[Any, Any, Any]:
        """Return classes (int32), confidences (float32) and boxes (N x 4, int32: left, top, width, height).

        Three empty tuples where nothing is found.  ``nmsThreshold`` changes nothing, as in OpenCV: the layer has left out
        boxes that overlap better ones.
        """
        name = self._net.getLayerNames()[-1]
        type_ = self._net.getLayer(name).type
        if type_ != DETECTIONS:
            raise GraphError(
                f"{name} ({type_}): a DetectionModel ends in a DetectionOutput layer; use Model.predict"
            )
        rows = np.concatenate([output.reshape(-1, _ROW) for output in self.predict(frame)])
        rows = rows[rows[:, 2] >= confThreshold]
        height, width = (self._size[1], self._size[0]) if self._has_im_info() else frame.shape[:2]
        boxes = np.array([_box(row[3:], width, height) for row in rows], np.int32).reshape(-1, 4)
        classes, confidences = rows[:, 1].astype(np.int32), rows[:, 2].copy()
        return (classes, confidences, boxes) if len(boxes) else ((), (), ())


def _box(corners: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """Corners in pixels or, where they are too close for that, in fractions of the image: left, top, width, height."""
    left, top, right, bottom = (int(value) for value in corners)
    if right - left + 1 <= _SMALLEST or bottom - top + 1 <= _SMALLEST:
        sides = np.array([width, height, width, height], np.float32)
        left, top, right, bottom = (int(value) for value in corners * sides)
    box_width, box_height = right - left + 1, bottom - top + 1
    left, top = max(0, min(left, width - 1)), max(0, min(top, height - 1))
    return left, top, max(1, min(box_width, width - left)), max(1, min(box_height, height - top))


class SegmentationModel(Model):
    """A net whose output are the scores of classes at each pixel."""

    def segment(self, frame: np.ndarray) -> np.ndarray:
        """Return the class with the highest score at each pixel of the output, uint8 (height, width)."""
        scores = self.predict(frame)[0]
        if scores.ndim != 4:
            raise GraphError(
                f"output of shape {scores.shape}: a SegmentationModel needs classes x height x width"
            )
        classes: np.ndarray = scores[0].argmax(axis=0)
        return classes.astype(np.uint8)


class KeypointsModel(Model):
    """A net whose output is a map for each point (and one for the background), or the points themselves."""

    def estimate(self, frame: np.ndarray, thresh: float = 0.5) -> np.ndarray:
        """Return each point as (x, y) in the image, (-1, -1) where its map is nowhere above ``thresh``."""
        output = self.predict(frame)[0]
        if output.ndim != 4:
            points: np.ndarray = output[0, :, :2].astype(np.float32)
            return points
        _, maps, height, width = output.shape
        found = np.full((maps - 1, 2), -1, np.float32)
        for number, one in enumerate(output[0, :-1]):
            y, x = np.unravel_index(one.argmax(), one.shape)
            if one[y, x] > thresh:
                found[number] = x * (frame.shape[1] / width), y * (frame.shape[0] / height)
        return found
