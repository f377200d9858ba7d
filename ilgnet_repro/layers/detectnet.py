"""The Python layers of DetectNet (NVIDIA DIGITS): cells grouped into boxes, and what they score."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .python_layer import PythonLayer, register_python_layer
from .support.base import Shape

SCORED_BOXES = 50  # rows of an image
RIGHT, WRONG, MISSED = 1, 2, 3
LOOP = "it groups boxes one after another"


def group_rectangles(rectangles: np.ndarray, threshold: int, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of groups of similar rectangles (x, y, width, height) and their sizes, as OpenCV does.

    Groups of ``threshold`` rectangles or fewer are dropped, and those inside a larger group's.
    """
    count = len(rectangles)
    if threshold <= 0 or not count:
        return rectangles, np.ones(count, np.int64)
    low, size = rectangles[:, :2], rectangles[:, 2:]
    corners = np.concatenate([low, low + size], 1)
    groups = np.full(count, -1)
    found = 0
    for first in range(count):
        if groups[first] >= 0:
            continue
        waiting, groups[first] = [first], found
        while waiting:
            one = waiting.pop()
            limit = eps * np.minimum(size[one], size).sum(1) * 0.5
            near = (np.abs(corners - corners[one]) <= limit[:, None]).all(1) & (groups < 0)
            groups[near] = found
            waiting += np.flatnonzero(near).tolist()
        found += 1
    sizes = np.bincount(groups)
    sums = np.zeros((found, 4), np.int64)
    np.add.at(sums, groups, rectangles)
    means = np.rint(sums.astype(np.float32) * (np.float32(1) / sizes.astype(np.float32))[:, None]).astype(
        np.int64
    )
    large = [index for index in range(found) if sizes[index] > threshold]
    kept = [
        one
        for one in large
        if not any(_hides(means, sizes, other, one, eps) for other in large if other != one)
    ]
    return means[kept], sizes[kept]


def _hides(means: np.ndarray, sizes: np.ndarray, other: int, one: int, eps: float) -> bool:
    """Whether one group's mean lies inside the other's, which has more rectangles."""
    slack = np.rint(means[other, 2:] * eps).astype(np.int64)
    inner, outer = means[one], means[other]
    inside = (inner[:2] >= outer[:2] - slack).all() and (
        inner[:2] + inner[2:] <= outer[:2] + outer[2:] + slack
    ).all()
    return bool(inside and (sizes[other] > max(3, sizes[one]) or sizes[one] < 3))


class _DetectNet(PythonLayer):
    """A layer whose `param_str` is a list of numbers."""

    has_gradient = False
    no_onnx = LOOP
    no_source = LOOP
    names: ClassVar[tuple[str, ...]] = ()  # of the numbers, in order
    real: ClassVar[tuple[str, ...]] = ()  # those that need not be integers
    defaults: ClassVar[dict[str, int]] = {"classes": 1, "max_boxes": 50}

    def _numbers(self) -> dict[str, float]:
        """Return the numbers by name."""
        parts = [part.strip() for part in self.param.param_str.split(",") if part.strip()]
        values: dict[str, float] = dict(self.defaults)
        for name, part in zip(self.names, parts, strict=False):
            try:
                values[name] = float(part) if name in self.real else int(part)
            except ValueError:
                kind = "a number" if name in self.real else "an integer"
                raise self.error(f"param_str: {name} {part!r} is not {kind}") from None
        missing = [name for name in self.names if name not in values]
        if missing:
            raise self.error(
                f"param_str {self.param.param_str!r} must have {', '.join(self.names)}; {missing[0]} is missing"
            )
        return values


class _Cluster(_DetectNet):
    """Boxes N×max_boxes×5 of each class, from coverage N×classes×H×W and boxes N×4×H×W relative to their cells."""

    bottom_count: ClassVar[tuple[int, int | None]] = (2, 2)

    def setup(self) -> None:
        stated = self._numbers()
        self.classes, self.boxes = int(stated["classes"]), int(stated["max_boxes"])
        width, height, stride = (int(stated[name]) for name in self.names[:3])
        if min(width, height, stride, self.classes, self.boxes) < 1 or stride > min(width, height):
            raise self.error(
                "param_str: sizes and counts must be over 0, and the stride at most the image's side"
            )
        self.cells = (height // stride, width // stride)
        self.pixels = (height // self.cells[0], width // self.cells[1])  # of a cell
        if len(self.node.tops) != self.classes:
            raise self.error(f"has {len(self.node.tops)} tops for {self.classes} classes; give one per class")
        self.stated = stated

    def reshape(self, bottoms: list[Shape]) -> list[Shape]:
        coverage, boxes = bottoms
        if len(coverage) != 4 or coverage[1] != self.classes:
            raise self.error(f"coverage {list(coverage)} must be N×{self.classes}×H×W: one map per class")
        if len(boxes) != 4 or boxes[1] < 4 or (boxes[0], *boxes[2:]) != (coverage[0], *coverage[2:]):
            raise self.error(
                f"boxes {list(boxes)} must be N×4×H×W, with the cells of the coverage {list(coverage)}"
            )
        return [(coverage[0], self.boxes, 5)] * self.classes

    def forward(self, coverage: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        maps, places = coverage.detach().float().cpu().numpy(), boxes.detach().float().cpu().numpy()
        tops = np.zeros((self.classes, len(maps), self.boxes, 5), np.float32)
        for image, of_class in np.ndindex(len(maps), self.classes):
            found = self._found(self._cells(maps[image, of_class], places[image]))
            if len(found) > self.boxes:
                raise self.error(f"{len(found)} boxes in image {image} are more than max_boxes {self.boxes}")
            tops[of_class, image, : len(found)] = found.astype(np.float16)  # as the fork rounds them
        return tuple(torch.from_numpy(top).to(coverage) for top in tops)

    def _cells(self, coverage: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Return the boxes of the cells that are covered, in pixels of the image."""
        covered = coverage[: self.cells[0], : self.cells[1]]
        rows, columns = np.nonzero(self._is_covered(covered))
        corner = np.stack([columns * self.pixels[1], rows * self.pixels[0]] * 2, 1)
        found: np.ndarray = boxes[:4, rows, columns].T.astype(np.float64) + corner
        if not np.isfinite(found).all():
            raise self.error("a covered cell has a box that is not finite")
        return found

    def _is_covered(self, coverage: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _found(self, boxes: np.ndarray) -> np.ndarray:
        raise NotImplementedError


@register_python_layer("caffe.layers.detectnet.clustering", "ClusterDetections")
class ClusterDetections(_Cluster):
    """The boxes that cells agree on: corners and the logarithm of how many cells have them, rounded to float16.

    `param_str`: width, height, stride, least coverage, cells that are too few, eps, least height[, classes[, max_boxes]].
    Corners are grouped as OpenCV's groupRectangles groups x, y, width and height, truncated to integers.
    Source: NVIDIA/caffe, python/caffe/layers/detectnet/clustering.py.
    """

    names = (
        "width",
        "height",
        "stride",
        "coverage",
        "rectangles",
        "eps",
        "min_height",
        "classes",
        "max_boxes",
    )
    real = ("coverage", "eps")

    def _is_covered(self, coverage: np.ndarray) -> np.ndarray:
        covered: np.ndarray = coverage >= np.float32(self.stated["coverage"])
        return covered

    def _found(self, boxes: np.ndarray) -> np.ndarray:
        if not boxes.any():
            return np.zeros((0, 5))
        if np.abs(boxes).max() >= 2**31:
            raise self.error("a covered cell has a box beyond 32 bits")
        whole = np.trunc(boxes).astype(np.int64)
        means, sizes = group_rectangles(whole, int(self.stated["rectangles"]), self.stated["eps"])
        rows = [
            [*mean, math.log(size)]
            for mean, size in zip(means.tolist(), sizes.tolist(), strict=True)
            if mean[3] - mean[1] >= self.stated["min_height"]
        ]
        return np.asarray(rows, np.float64).reshape(-1, 5)


@register_python_layer("caffe.layers.detectnet.clustering", "ClusterGroundtruth")
class ClusterGroundtruth(_Cluster):
    """The different boxes of the covered cells, rounded to float16; a box's fifth value is 0.

    `param_str`: width, height, stride[, classes[, max_boxes]].  They are in the order of the cells; the fork's order is
    that of a Python set.  Source: NVIDIA/caffe, python/caffe/layers/detectnet/clustering.py.
    """

    names = ("width", "height", "stride", "classes", "max_boxes")

    def _is_covered(self, coverage: np.ndarray) -> np.ndarray:
        covered: np.ndarray = coverage > 0
        return covered

    def _found(self, boxes: np.ndarray) -> np.ndarray:
        rows = list(dict.fromkeys(map(tuple, boxes.tolist())))
        return np.pad(np.asarray(rows, np.float64).reshape(-1, 4), [(0, 0), (0, 1)])


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection over union of two boxes, 0 where they do not touch."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    both = float(sides.clip(0).prod())
    if not both:
        return 0.0
    return both / (float((one[2:] - one[:2]).prod()) + float((other[2:] - other[:2]).prod()) - both)


@register_python_layer("caffe.layers.detectnet.mean_ap", "ScoreDetections")
class ScoreDetections(_DetectNet):
    """Boxes N×50×5 with a fifth value: 1 right, 2 wrong, 3 a true box that was missed; bottoms are true and found boxes.

    A true box takes the first found box that no other took, with an overlap of `param_str` (0.7) or more.
    Source: NVIDIA/caffe, python/caffe/layers/detectnet/mean_ap.py.
    """

    bottom_count: ClassVar[tuple[int, int | None]] = (2, 2)
    top_count: ClassVar[tuple[int, int | None]] = (1, 1)

    def setup(self) -> None:
        try:
            self.least = float(self.param.param_str)
        except ValueError:  # the fork ignores any other text
            self.least = 0.7

    def reshape(self, bottoms: list[Shape]) -> list[Shape]:
        for shape in bottoms:
            if len(shape) != 3 or shape[2] != 5 or shape[0] != bottoms[0][0]:
                raise self.error(
                    f"needs boxes N×B×5 of as many images, not {' and '.join(str(list(s)) for s in bottoms)}"
                )
        return [(bottoms[0][0], SCORED_BOXES, 5)]

    def forward(self, truth: Tensor, found: Tensor) -> tuple[Tensor]:
        top = torch.zeros(len(truth), SCORED_BOXES, 5)
        for image in range(len(truth)):
            true, given = (
                boxes[boxes.any(1)]
                for boxes in (blob[image, :, :4].detach().float().cpu().numpy() for blob in (truth, found))
            )
            taken, matched = np.zeros(len(given), bool), np.zeros(len(true), bool)
            for row, box in enumerate(true):
                for column, other in enumerate(given):
                    if overlap(other, box) >= self.least and not taken[column]:
                        taken[column] = matched[row] = True
                        break
            kinds = ((given[taken], RIGHT), (given[~taken], WRONG), (true[~matched], MISSED))
            rows = np.concatenate(
                [np.pad(boxes, [(0, 0), (0, 1)], constant_values=kind) for boxes, kind in kinds]
            )
            if len(rows) > SCORED_BOXES:
                raise self.error(f"{len(rows)} boxes in image {image} are more than {SCORED_BOXES}")
            top[image, : len(rows)] = torch.from_numpy(rows)
        return (top.to(truth),)


@register_python_layer("caffe.layers.detectnet.mean_ap", "mAP")
class MeanPrecision(_DetectNet):
    """Precision times recall over 100, precision and recall, in percent, of all boxes of a batch of scored boxes.

    Source: NVIDIA/caffe, python/caffe/layers/detectnet/mean_ap.py, whose `param_str` is not read.
    """

    bottom_count: ClassVar[tuple[int, int | None]] = (1, 1)
    top_count: ClassVar[tuple[int, int | None]] = (3, 3)

    def reshape(self, bottoms: list[Shape]) -> list[Shape]:
        if len(bottoms[0]) != 3 or bottoms[0][2] < 5:
            raise self.error(f"scored boxes {list(bottoms[0])} must be N×B×5")
        return [(1,)] * 3

    def forward(self, scored: Tensor) -> tuple[Tensor, ...]:
        right, wrong, missed = (int((scored[:, :, 4] == kind).sum()) for kind in (RIGHT, WRONG, MISSED))
        precision, recall = (
            100 * right / (right + other) if right + other else 0.0 for other in (wrong, missed)
        )
        return tuple(scored.new_tensor([value]) for value in (precision * recall / 100, precision, recall))
