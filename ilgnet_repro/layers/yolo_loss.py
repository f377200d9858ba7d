"""The losses that YOLO's detectors are trained with: RegionLoss (version 2), Yolov3 and YoloSeg.

Each computes a delta for every value.  The loss is the sum of the deltas' squares over the number of images; its gradient is
the deltas themselves over that number (not twice them), as in darknet.
"""

from __future__ import annotations

import math
from math import prod
from typing import Any

import torch
from torch import Tensor

from .loss import Loss
from .support.base import LayerPlan, OnnxGraph, Shape, SourceCode, literal, numbers
from .support.iteration import CountsPasses
from .support.registry import register_layer

TRUE_BOX = 5  # class, centre, width and height, relative to the image
LABEL_ROWS = (30, 300)  # per image, in older and newer builds of the fork
BURN_IN = 12800  # images during which RegionLoss pulls boxes to their anchors
FOCAL_ALPHA = 0.5
Box = tuple[float, float, float, float]


def squares_of_deltas(delta: Tensor, x: Tensor) -> Tensor:
    """Return the sum of the squares over the number of images; its gradient by x is the deltas over that number."""
    path = delta.detach() * (x - x.detach())
    return (delta.detach().square().sum() + path.sum()) / x.shape[0]


def overlaps(boxes: Tensor, truth: Tensor) -> Tensor:
    """Return the intersection over union of boxes (..., 4) with one: centre, width and height."""
    half, true_half = boxes[..., 2:] / 2, truth[2:] / 2
    low = torch.maximum(boxes[..., :2] - half, truth[:2] - true_half)
    high = torch.minimum(boxes[..., :2] + half, truth[:2] + true_half)
    common = (high - low).clamp(min=0).prod(-1)
    return common / (boxes[..., 2:].prod(-1) + truth[2:].prod() - common)


class _YoloLoss(Loss):
    """Bottoms: N × boxes·(5 + classes) × H × W and the true boxes, N × 30 or 300 × 5 (class, x, y, width, height).

    The true boxes of an image end at the first whose width is 0; only those before the first whose x is 0 excuse
    boxes that overlap them from having no objectness.
    """

    index_bottoms = (1,)
    no_onnx = "true boxes are assigned to anchors one after another"
    no_source = "true boxes are assigned to anchors one after another"
    classes: int
    boxes: int

    def setup(self, *ranks: int) -> None:
        self.classes, self.boxes = self.param.num_class, self.param.num
        if self.classes < 1 or self.boxes < 1:
            raise self.error(f"num_class {self.classes} and num {self.boxes} must be over 0")
        if len(self.param.biases) % 2 or min(self.param.biases, default=0) <= 0:
            stated = [round(value, 4) for value in self.param.biases]
            raise self.error(f"biases {stated} must state a width and a height over 0 per anchor")
        self.anchors: list[tuple[float, float]] = list(
            zip(self.param.biases[::2], self.param.biases[1::2], strict=True)
        )

    def plan(self, x: Shape, labels: Shape) -> LayerPlan:
        self._check_first_axis(x, labels)
        wanted = self.boxes * (TRUE_BOX + self.classes)
        if len(x) != 4 or x[1] != wanted:
            raise self.error(
                f"bottom {list(x)} must be N×{wanted}×H×W: num {self.boxes} × (5 + {self.classes} classes)"
            )
        if prod(labels) not in [x[0] * rows * TRUE_BOX for rows in LABEL_ROWS]:
            raise self.error(
                f"true boxes {list(labels)} must be N×1×300×5 (or N×1×30×5): class, x, y, width and height"
            )
        return LayerPlan([()])

    def _truths(self, labels: Tensor, images: int) -> list[tuple[list[Box], list[tuple[int, Box]]]]:
        """Return, per image, the boxes that excuse others, and the boxes with their classes that are to be found."""
        found = []
        for rows in labels.detach().reshape(images, -1, TRUE_BOX).tolist():
            excusing = next((row for row, values in enumerate(rows) if values[1] == 0), len(rows))
            wanted = next((row for row, values in enumerate(rows) if values[3] == 0), len(rows))
            for label, x, y, width, height in rows[: max(excusing, wanted)]:
                if not (0 <= x < 1 and 0 <= y < 1 and width > 0 and height > 0 and 0 <= label < self.classes):
                    raise self.error(
                        f"true box {[round(v, 4) for v in (label, x, y, width, height)]} must be a class under "
                        f"{self.classes}, a centre from 0 to below 1, and a width and height over 0"
                    )
            boxes: list[Box] = [(x, y, width, height) for _, x, y, width, height in rows]
            found.append((boxes[:excusing], [(int(rows[i][0]), boxes[i]) for i in range(wanted)]))
        return found

    def _best_anchor(self, sizes: Tensor, box: Box) -> int | None:
        """Return the first of the sizes (A × 2) that overlaps a box of the same centre most, or None."""
        centred = torch.cat([torch.zeros_like(sizes), sizes], 1)
        found = overlaps(centred, sizes.new_tensor((0.0, 0.0, *box[2:])))
        return int(found.argmax()) if float(found.max()) > 0 else None

    @staticmethod
    def _excused(boxes: Tensor, truths: list[Box], threshold: float) -> Tensor:
        """Return which of the boxes (..., 4) overlap a true box by more than the threshold."""
        best = torch.zeros_like(boxes[..., 0])
        for truth in truths:
            best = torch.maximum(best, overlaps(boxes, boxes.new_tensor(truth)))
        found: Tensor = best > threshold
        return found

    @staticmethod
    def _targets(box: Box, cell: tuple[int, int], grid: tuple[int, int], anchor: tuple[float, float]) -> Box:
        """Return what x, y, width and height of a cell's box should be; the anchor is relative to the image."""
        return (
            box[0] * grid[1] - cell[1],
            box[1] * grid[0] - cell[0],
            math.log(box[2] / anchor[0]),
            math.log(box[3] / anchor[1]),
        )


def _cells(x: Tensor, boxes: int) -> Tensor:
    """Return N × boxes × values × H × W in float32 or wider, without a gradient."""
    cells: Tensor = x.detach().to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (boxes, -1))
    return cells


def _grid_boxes(cells: Tensor, sizes: Tensor) -> Tensor:
    """Return the boxes N × A × H × W × 4 of cells whose first values are x, y (within the cell), log width and height."""
    height, width = cells.shape[3:]
    row = torch.arange(height, device=cells.device)[:, None]
    column = torch.arange(width, device=cells.device)
    extents = torch.exp(cells[:, :, 2:4]) * sizes[:, :, None, None]
    centre = [(column + cells[:, :, 0]) / width, (row + cells[:, :, 1]) / height]
    return torch.stack([*centre, extents[:, :, 0], extents[:, :, 1]], -1)


@register_layer("RegionLoss")
class RegionLoss(_YoloLoss, CountsPasses):
    """The loss of YOLO 2, for a square map; see the module for how deltas make a loss.

    With p = sigmoid and s = p (1 - p) per value: a box without an object has the objectness delta noobject_scale p s,
    unless it overlaps a true box by more than `thresh`.  A true box belongs to the cell of its centre and the anchor that
    overlaps it most (`bias_match`; else the predicted size): deltas coord_scale (p - target) s for x and y,
    coord_scale (t - target) for width and height, object_scale (p - IoU) s, class_scale (softmax - one-hot).  Without
    `rescore` the target of the objectness is 1, and coord_scale is multiplied by 2 - area.  For the first 12800 / N passes
    all boxes are also drawn to their anchors with scale 0.01; the fork counts the passes of all layers of this type
    together, here each counts its own.
    Source: eric612/MobileNet-YOLO, src/caffe/layers/region_loss_layer.cpp.
    """

    message = "region_loss_param"
    fields = (
        *("num_class", "coords", "num", "bias_match", "rescore", "biases", "thresh"),
        *("object_scale", "noobject_scale", "class_scale", "coord_scale"),
    )
    # Read by nothing in the fork; the side is the bottom's, and the classes' softmax is always taken.
    ignored_fields = ("side", "softmax", "jitter", "absolute", "random", "softmax_tree", "class_map")

    def setup(self, *ranks: int) -> None:
        super().setup(*ranks)
        self.start_counting()
        if self.param.coords != 4:
            raise self.error(f"coords {self.param.coords} must be 4: x, y, width and height")
        if len(self.param.biases) < max(10, 2 * self.boxes):  # the fork reads fewer than 10 as zeros
            raise self.error(
                f"biases has {len(self.param.biases)} values; state {max(10, 2 * self.boxes)}: "
                "a width and a height per anchor"
            )

    def plan(self, x: Shape, labels: Shape) -> LayerPlan:
        if len(x) == 4 and x[2] != x[3]:
            raise self.error(f"bottom {list(x)} must be square: the layer takes its width for both sides")
        return super().plan(x, labels)

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor]:
        param, side = self.param, x.shape[3]
        cells = _cells(x, self.boxes).clone()
        p = torch.sigmoid(cells)
        slope = p * (1 - p)
        classes = cells[:, :, 5:].softmax(2)
        sizes = cells.new_tensor(self.anchors[: self.boxes]) / side
        boxes = _grid_boxes(torch.cat([p[:, :, :2], cells[:, :, 2:4]], 2), sizes)
        delta = torch.zeros_like(cells)
        delta[:, :, 4] = param.noobject_scale * p[:, :, 4] * slope[:, :, 4]
        if self.take_pass() < BURN_IN // x.shape[0]:
            delta[:, :, :2] = 0.01 * (p[:, :, :2] - 0.5) * slope[:, :, :2]
            delta[:, :, 2:4] = 0.01 * cells[:, :, 2:4]
        for image, (excusing, wanted) in enumerate(self._truths(labels, x.shape[0])):
            delta[image, :, 4][self._excused(boxes[image], excusing, param.thresh)] = 0
            for label, box in wanted:
                cell = (int(box[1] * side), int(box[0] * side))
                own = (image, slice(None), slice(None), *cell)
                match = sizes if param.bias_match else boxes[image, :, cell[0], cell[1], 2:]
                anchor = self._best_anchor(match, box)
                if anchor is None:
                    raise self.error(f"no box of its cell overlaps the true box {[round(v, 4) for v in box]}")
                value, found, d = p[own][anchor], slope[own][anchor], delta[own][anchor]
                target = value.new_tensor(
                    self._targets(box, cell, (side, side), tuple(sizes[anchor].tolist()))
                )
                scale = param.coord_scale * (1 if param.rescore else 2 - box[2] * box[3])
                d[:2] = scale * (value[:2] - target[:2]) * found[:2]
                d[2:4] = scale * (cells[own][anchor, 2:4] - target[2:])
                hit = (
                    overlaps(boxes[image, anchor, cell[0], cell[1]], d.new_tensor(box))
                    if param.rescore
                    else 1
                )
                d[4] = param.object_scale * (value[4] - hit) * found[4]
                d[5:] = param.class_scale * classes[image, anchor, :, cell[0], cell[1]]
                d[5 + label] -= param.class_scale
        return (squares_of_deltas(delta.flatten(1, 2), x),)


def iou_slopes(box: Box, truth: Box, generalized: bool) -> Box:
    """Return the derivatives of the IoU (or GIoU) by a box's top, bottom, left and right, as darknet computes them."""
    left, right = box[0] - box[2] / 2, box[0] + box[2] / 2
    top, bottom = box[1] - box[3] / 2, box[1] + box[3] / 2
    tl, tr, tt, tb = (
        truth[0] - truth[2] / 2,
        truth[0] + truth[2] / 2,
        truth[1] - truth[3] / 2,
        truth[1] + truth[3] / 2,
    )
    common_h, common_w = min(bottom, tb) - max(top, tt), min(right, tr) - max(left, tl)
    common = common_h * common_w  # of boxes that lie apart too, whatever its sign
    union = box[2] * box[3] + truth[2] * truth[3] - common
    hull_w, hull_h = max(right, tr) - min(left, tl), max(bottom, tb) - min(top, tt)
    hull = hull_w * hull_h
    area = (-(right - left), right - left, -(bottom - top), bottom - top)
    inner = (
        -common_w if top > tt else 0.0,
        common_w if bottom < tb else 0.0,
        -common_h if left > tl else 0.0,
        common_h if right < tr else 0.0,
    )
    outer = (
        -hull_w if top < tt else 0.0,
        hull_w if bottom > tb else 0.0,
        -hull_h if left < tl else 0.0,
        hull_h if right > tr else 0.0,
    )
    slopes = []
    for of_area, of_common, of_hull in zip(area, inner, outer, strict=True):
        of_union = of_area - of_common
        slope = (union * of_common - common * of_union) / union**2 if union > 0 else 0.0
        if generalized and hull > 0:
            slope += (hull * of_union - union * of_hull) / hull**2
        slopes.append(slope)
    return slopes[0], slopes[1], slopes[2], slopes[3]


def generalized_iou(box: Tensor, truth: Tensor) -> Tensor:
    """Return IoU - (hull - union) / hull of two boxes: centre, width and height."""
    low = torch.minimum(box[:2] - box[2:] / 2, truth[:2] - truth[2:] / 2)
    high = torch.maximum(box[:2] + box[2:] / 2, truth[:2] + truth[2:] / 2)
    hull = (high - low).prod()
    iou = overlaps(box, truth)
    union = (box[2:].prod() + truth[2:].prod()) / (1 + iou)
    return iou - (hull - union) / hull


@register_layer("Yolov3")
class Yolov3(_YoloLoss):
    """The loss of YOLO 3 for one map; see the module for how deltas make a loss.

    With p = sigmoid: a box without an object has the objectness delta p, unless it overlaps a true box by more than
    `thresh`.  A true box belongs to the cell of its centre and to the anchor, of all in `biases` (pixels of W and H times
    `anchors_scale`), that overlaps it most, if that is one of this map's, `mask`: deltas s (p - target) for x and y,
    s (t - target) for width and height, s = coord_scale (2 - area); p - 1 for the objectness;
    class_scale (p - one-hot), but of a cell's second true box only that of its own class.  `use_focal_loss`: the
    classes' deltas times -0.5 (1 - q) (2 q log q + q - 1), q that of the label.  `iou_loss` IOU and GIOU: the deltas of the
    box are `iou_normalizer` times minus the slopes of that measure, and the loss counts
    iou_normalizer (1 - GIoU) in their place.  `use_logic_gradient`: the gradient of all but width and height is
    multiplied by p (1 - p), and the objectness' delta by object_scale.
    Source: eric612/MobileNet-YOLO, src/caffe/layers/yolov3_layer.cpp (commit 69262dc; older builds of the fork read the
    fields up to `use_logic_gradient` and give a second class of one box the opposite sign).
    """

    message = "yolov3_param"
    fields = (
        *("num_class", "num", "biases", "mask", "anchors_scale", "thresh", "object_scale", "class_scale"),
        *("coord_scale", "use_logic_gradient", "use_focal_loss", "iou_loss", "iou_normalizer"),
    )
    ignored_fields = ("side", "noobject_scale")  # the fork does not read them

    def setup(self, *ranks: int) -> None:
        super().setup(*ranks)
        self.mask: list[int] = list(self.param.mask)
        if len(self.mask) < self.boxes or max(self.mask) >= len(self.anchors):
            raise self.error(
                f"mask {self.mask} must name {self.boxes} of the {len(self.anchors)} anchors in biases"
            )
        if self.param.anchors_scale < 1:
            raise self.error("anchors_scale 0 must be over 0")
        kind: Any = type(self.param)
        self.measure = kind.IOULoss.Name(self.param.iou_loss)
        if self.measure != "MSE" and not self.param.HasField("iou_normalizer"):
            raise self.error(
                f"iou_loss {self.measure} needs iou_normalizer, whose default differs between builds; state it"
            )

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor]:
        param, grid = self.param, (x.shape[2], x.shape[3])
        cells = _cells(x, self.boxes)
        p = torch.sigmoid(cells)
        p[:, :, 2:4] = cells[:, :, 2:4]
        pixels = cells.new_tensor([grid[1] * param.anchors_scale, grid[0] * param.anchors_scale])
        every = cells.new_tensor(self.anchors) / pixels
        boxes = _grid_boxes(p, every[self.mask[: self.boxes]])
        delta, apart = torch.zeros_like(cells), cells.new_zeros(())
        delta[:, :, 4] = p[:, :, 4]
        for image, (excusing, wanted) in enumerate(self._truths(labels, x.shape[0])):
            delta[image, :, 4][self._excused(boxes[image], excusing, param.thresh)] = 0
            for label, box in wanted:
                anchor = self._best_anchor(every, box)
                if anchor not in self.mask[: self.boxes]:
                    continue
                own, cell = self.mask.index(anchor), (int(box[1] * grid[0]), int(box[0] * grid[1]))
                value, d = p[image, own, :, cell[0], cell[1]], delta[image, own, :, cell[0], cell[1]]
                if self.measure == "MSE":
                    target = self._targets(box, cell, grid, tuple(every[anchor].tolist()))
                    scale = param.coord_scale * (2 - box[2] * box[3])
                    d[:4] = scale * (value[:4] - value.new_tensor(target))
                else:
                    predicted = boxes[image, own, cell[0], cell[1]]
                    apart += 1 - generalized_iou(predicted, predicted.new_tensor(box))
                    d[:4] = self._toward(predicted, box, value)
                d[4] = (value[4] - 1) * (param.object_scale if param.use_logic_gradient else 1)
                self._find_class(d[5:], value[5:], label)
        return (self._loss(x, cells, p, delta, apart),)

    def _toward(self, predicted: Tensor, box: Box, value: Tensor) -> Tensor:
        """Return the deltas of x, y, width and height by the slopes of the IoU."""
        top, bottom, left, right = iou_slopes(tuple(predicted.tolist()), box, self.measure == "GIOU")
        sizes = (-0.5 * left + 0.5 * right, -0.5 * top + 0.5 * bottom)
        slopes = value.new_tensor((left + right, top + bottom, *sizes))
        slopes[2:] *= torch.exp(value[2:4])
        return slopes * -float(self.param.iou_normalizer)

    def _find_class(self, delta: Tensor, p: Tensor, label: int) -> None:
        """Write the deltas of the classes of one box."""
        if delta[0] != 0:  # the box has been given to another true box
            delta[label] = p[label] - 1
            return
        scale = self.param.class_scale
        if self.param.use_focal_loss:
            q = float(p[label]) + 1e-15
            scale *= -FOCAL_ALPHA * (1 - q) * (2 * q * math.log(q) + q - 1)
        delta[:] = scale * p
        delta[label] -= scale

    def _loss(self, x: Tensor, cells: Tensor, p: Tensor, delta: Tensor, apart: Tensor) -> Tensor:
        # In the fork the values that the gradient's factor is made of are no sigmoids with IoU.
        used = p if self.measure == "MSE" else torch.cat([cells[:, :, :4], p[:, :, 4:]], 2)
        gradient = delta.clone()
        if self.param.use_logic_gradient:
            factor = used * (1 - used)
            factor[:, :, 2:4] = 1
            gradient *= factor
        counted = delta if self.measure == "MSE" else delta[:, :, 4:]
        total = counted.square().sum()
        if self.measure != "MSE":
            total = total + self.param.iou_normalizer * apart
        path = (gradient.flatten(1, 2) * (x - x.detach())).sum()
        loss: Tensor = (total + path) / x.shape[0]
        return loss


@register_layer("YoloSeg")
class YoloSeg(Loss):
    """Deltas object_scale (sigmoid(x) - label) for a map of classes; see the module for how deltas make a loss.

    Source: eric612/MobileNet-YOLO, src/caffe/layers/yolo_seg.cpp.
    """

    message = "yolo_seg_param"
    fields = ("object_scale",)
    # The fork sets them and reads none.
    ignored_fields = ("use_logic_gradient", "use_hardsigmoid", "class_scale", "num_class")

    def setup(self, *ranks: int) -> None:
        if not self.param.HasField("object_scale"):
            raise self.error("object_scale is absent; state it, its default differs between builds")

    def plan(self, x: Shape, labels: Shape) -> LayerPlan:
        self._check_first_axis(x, labels)
        if prod(x) != prod(labels):
            raise self.error(f"bottoms {list(x)} and {list(labels)} differ in their number of values")
        return LayerPlan([()])

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor]:
        delta = self.param.object_scale * (torch.sigmoid(x.detach()) - labels.detach().reshape(x.shape))
        return (squares_of_deltas(delta, x),)

    def onnx(self, graph: OnnxGraph, x: str, labels: str) -> list[str]:
        like = graph.node("Reshape", [labels, graph.node("Shape", [x])])
        delta = graph.node("Sub", [graph.node("Sigmoid", [x]), like])
        delta = graph.node("Mul", [delta, graph.constant(numbers(self.param.object_scale))])
        total = graph.node("ReduceSumSquare", [delta], keepdims=0)
        count = graph.node("Cast", [graph.node("Shape", [x], start=0, end=1)], to=1)
        return [graph.node("Div", [total, graph.node("Squeeze", [count])])]

    def source(self, code: SourceCode, x: str, labels: str) -> list[str]:
        delta = f"({literal(self.param.object_scale)} * (torch.sigmoid({x}) - {labels}.reshape({x}.shape)))"
        return [f"{delta}.square().sum() / {x}.shape[0]"]
