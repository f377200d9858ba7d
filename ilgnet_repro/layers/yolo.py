"""YOLO's layers: Reorg, YoloDetectionOutput (version 2) and Yolov3DetectionOutput."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .support.base import (
    Layer,
    LayerPlan,
    OnnxGraph,
    Shape,
    SourceCode,
    exact,
    integers,
    literal,
    numbers,
    uses,
)
from .support.boxes import greedy_nms
from .support.detections import node_writer, rows_or_blank
from .support.registry import register_layer
from .support.shapes import Kept, Length, reshape_onnx

# ---------------------------------------------------------------------- torch, also for written source


def reorg(x: Tensor, stride: int, reverse: bool) -> Tensor:
    """Move blocks of stride × stride values into channels in darknet's order, which is no plain space-to-depth."""
    n, c, h, w = x.shape
    s = stride
    if reverse:
        blocks = x.reshape(n, s, s, c // s**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return blocks.reshape(n, c // s**2, h * s, w * s)
    blocks = x.reshape(n, c // s**2, h, s, w, s).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, c * s**2, h // s, w // s)


def yolo_boxes(x: Tensor, anchors: list[tuple[float, float]], scale: int) -> tuple[Tensor, Tensor]:
    """Return the boxes (centre, width, height; relative to the image) and raw scores of N × A(5 + classes) × H × W.

    Both are in the order image, cell, anchor; an anchor is in cells of ``scale`` pixels.
    """
    height, width = x.shape[2:]
    cells = x.unflatten(1, (len(anchors), -1)).permute(0, 3, 4, 1, 2)
    row = torch.arange(height, device=x.device, dtype=x.dtype)[:, None, None]
    column = torch.arange(width, device=x.device, dtype=x.dtype)[:, None]
    sides = torch.tensor(anchors, device=x.device, dtype=x.dtype)
    boxes = [
        (column + torch.sigmoid(cells[..., 0])) / width,
        (row + torch.sigmoid(cells[..., 1])) / height,
        torch.exp(cells[..., 2]) * sides[:, 0] / (width * scale),
        torch.exp(cells[..., 3]) * sides[:, 1] / (height * scale),
    ]
    return torch.stack(boxes, -1).flatten(0, -2), cells[..., 4:].flatten(0, -2)


def yolo_rows(boxes: Tensor, scores: Tensor, labels: Tensor, images: int, nms_threshold: float) -> Tensor:
    """Return rows (0, class, score, corners), 1×1×R×7, by descending score; all images and classes compete.

    Where nothing is detected there is one row of -1 per image.
    """
    if not len(boxes):
        top = torch.full((images, 7), -1.0, device=boxes.device, dtype=boxes.dtype)
        top[:, 0] = torch.arange(images)
        return top[None, None]
    scores, order = scores.sort(descending=True, stable=True)
    centre, half = boxes[order, :2], boxes[order, 2:] / 2
    corners = torch.cat([centre - half, centre + half], 1)
    kept = greedy_nms(corners.cpu(), nms_threshold, drop_equal=True).to(boxes.device)
    columns = [torch.zeros_like(scores[kept]), labels[order][kept], scores[kept]]
    return torch.cat([torch.stack(columns, 1), corners[kept]], 1)[None, None]


def detect_yolo2(
    bottoms: list[Tensor], anchors: list[tuple[float, float]], confidence: float, nms_threshold: float
) -> Tensor:
    """Return the detections of YOLO 2: the best class of each box, by softmax, times the objectness."""
    parts = []
    for x in bottoms:
        boxes, raw = yolo_boxes(x, anchors, 1)
        best, label = raw[:, 1:].softmax(1).max(1)
        score = torch.sigmoid(raw[:, 0]) * best
        keep = score >= confidence
        parts.append((boxes[keep], score[keep], label[keep].to(x.dtype) + 1))
    boxes, scores, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return yolo_rows(boxes, scores, labels, len(bottoms[0]), nms_threshold)


def detect_yolo3(
    bottoms: list[Tensor],
    anchors: list[list[tuple[float, float]]],
    scales: list[int],
    confidence: float,
    nms_threshold: float,
) -> Tensor:
    """Return the detections of YOLO 3: a box for each class whose sigmoid times the objectness is large enough."""
    parts = []
    for x, own, scale in zip(bottoms, anchors, scales, strict=True):
        boxes, raw = yolo_boxes(x, own, scale)
        score = torch.sigmoid(raw[:, 1:]) * torch.sigmoid(raw[:, :1])
        box, label = (score > confidence).nonzero(as_tuple=True)
        parts.append((boxes[box], score[box, label], label.to(x.dtype) + 1))
    boxes, scores, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return yolo_rows(boxes, scores, labels, len(bottoms[0]), nms_threshold)


uses(yolo_rows, greedy_nms)
uses(detect_yolo2, yolo_boxes, yolo_rows)
uses(detect_yolo3, yolo_boxes, yolo_rows)

# ---------------------------------------------------------------------- layers


@register_layer("Reorg")
class Reorg(Layer):
    """Values of `stride` × `stride` blocks as channels, or back with `reverse` (YOLO 2's passthrough).

    Source: MobileNet-YOLO, src/caffe/layers/reorg_layer.cpp, after darknet's reorg_cpu.
    """

    message = "reorg_param"
    fields = ("stride", "reverse")
    no_float16 = ""

    def setup(self, rank: int) -> None:
        self.stride: int = self.param.stride
        if self.stride < 1:
            raise self.error("stride is 0 or absent; state the side of a block")
        self.reverse: bool = self.param.reverse

    def plan(self, x: Shape) -> LayerPlan:
        if len(x) != 4:
            raise self.error(f"bottom {list(x)} must be N×C×H×W")
        n, c, h, w = x
        s = self.stride
        if c % s**2:
            raise self.error(f"{c} channels are not a multiple of stride² = {s**2}")
        if self.reverse:
            return LayerPlan([(n, c // s**2, h * s, w * s)])
        if h % s or w % s:
            raise self.error(f"height {h} and width {w} must be multiples of stride {s}")
        return LayerPlan([(n, c * s**2, h // s, w // s)])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (reorg(x, self.stride, self.reverse),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        s, channels = self.stride, graph.size(x, 1)
        split: list[Length]
        if self.reverse:
            less, order, op = channels // s**2, [0, 3, 4, 1, 5, 2], "Mul"
            split, channels = [Kept(0), s, s, less, Kept(2), Kept(3)], less
        else:
            less, order, op = channels // s**2, [0, 3, 5, 1, 2, 4], "Div"
            split, channels = [Kept(0), less, Kept(2), s, Kept(3), s], channels * s**2
        blocks = graph.node("Transpose", [reshape_onnx(graph, x, split, x)], perm=order)
        sides = graph.node("Shape", [x], start=2)
        sides = graph.node(op, [sides, graph.constant(integers(s, s))])
        batch = graph.node("Shape", [x], start=0, end=1)
        shape = graph.node("Concat", [batch, graph.constant(integers(channels)), sides], axis=0)
        return [graph.node("Reshape", [blocks, shape])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"{code.helper(reorg)}({x}, {self.stride}, {self.reverse})"]


class _YoloOutput(Layer):
    """Detections 1×1×R×7 as SSD's, but the image's number is 0 in all rows, and all images compete.

    R is known only when the net runs: `plan` returns the maximum.
    """

    has_gradient = False
    sized_by_values = True
    counted_axis = 2
    each_class: ClassVar[bool]  # whether a cell's anchor gives a box per class, or one
    classes: int
    boxes: int
    # Per bottom: its anchors in pixels of the scale beside them.
    anchors: list[list[tuple[float, float]]]
    scales: list[int]

    def setup(self, *ranks: int) -> None:
        if not self.param.num_classes:
            raise self.error("num_classes is 0 or absent; state their number")
        self.classes, self.boxes = self.param.num_classes, self.param.num_box
        if self.boxes < 1:
            raise self.error("num_box 0 must be over 0")
        if len(self.param.biases) % 2:
            raise self.error(
                f"biases has {len(self.param.biases)} values; state a width and a height per anchor"
            )

    def _anchor(self, index: int) -> tuple[float, float]:
        biases = self.param.biases
        if 2 * index >= len(biases):
            raise self.error(f"anchor {index} is used but biases states {len(biases) // 2}")
        return biases[2 * index], biases[2 * index + 1]

    def plan(self, *bottoms: Shape) -> LayerPlan:
        wanted = self.boxes * (5 + self.classes)
        most = 0
        for shape in bottoms:
            if len(shape) != 4 or shape[1] != wanted or shape[0] != bottoms[0][0]:
                raise self.error(
                    f"bottom {list(shape)} must be N×{wanted}×H×W: num_box {self.boxes} × (5 + {self.classes} classes)"
                )
            most += shape[0] * self.boxes * shape[2] * shape[3]
        rows = most * (self.classes if self.each_class else 1)
        return LayerPlan([(1, 1, max(rows, bottoms[0][0]), 7)])

    def _rows_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], confidence: float) -> str:
        from onnx import TensorProto

        node = node_writer(graph)

        def cells(x: str, axis: int) -> tuple[str, str]:
            """Add the numbers 0, 1, ... along an axis, and their count as a float."""
            count = node("Squeeze", node("Shape", x, start=axis, end=axis + 1))
            steps = node("Cast", node("Range", np.array(0), count, np.array(1)), to=TensorProto.FLOAT)
            return steps, node("Cast", count, to=TensorProto.FLOAT)

        boxes, scores, labels = [], [], []
        each = self.classes if self.each_class else 1
        for x, anchors, scale in zip(bottoms, self.anchors, self.scales, strict=True):
            size = (Kept(0), self.boxes, 5 + self.classes, Kept(2), Kept(3))
            split = node("Transpose", reshape_onnx(graph, x, size, x), perm=[0, 3, 4, 1, 2])
            lengths = graph.constant(integers(1, 1, 1, 1, 1, self.classes))
            *parts, raw = graph.nodes("Split", [split, lengths], 6, axis=4)
            (column, width), (row, height) = cells(x, 3), cells(x, 2)
            sides = np.array(anchors, np.float32)
            row, column = node("Unsqueeze", row, integers(1, 2, 3)), node("Unsqueeze", column, integers(1, 2))
            centre = [
                node("Div", node("Add", place, node("Sigmoid", part)), extent)
                for place, part, extent in ((column, parts[0], width), (row, parts[1], height))
            ]
            extents = [
                node(
                    "Div", node("Mul", node("Exp", part), side[:, None]), node("Mul", extent, numbers(scale))
                )
                for part, side, extent in ((parts[2], sides[:, 0], width), (parts[3], sides[:, 1], height))
            ]
            box = node("Concat", *centre, *extents, axis=4)
            objectness = node("Sigmoid", parts[4])
            if self.each_class:
                score = node("Mul", objectness, node("Sigmoid", raw))
                label = node("Expand", np.arange(1, each + 1, dtype=np.float32), node("Shape", score))
                shape = node("Concat", node("Shape", score), integers(4), axis=0)
                box = node("Expand", node("Unsqueeze", box, integers(4)), shape)
            else:
                probability = node("Softmax", raw, axis=4)
                score = node("Mul", objectness, node("ReduceMax", probability, integers(4), keepdims=1))
                best = node("ArgMax", probability, axis=4, keepdims=1)
                label = node("Add", node("Cast", best, to=TensorProto.FLOAT), numbers(1))
            boxes.append(node("Reshape", box, integers(1, -1, 4)))
            scores.append(node("Reshape", score, integers(1, 1, -1)))
            labels.append(node("Reshape", label, integers(-1)))
        box, score, label = (
            node("Concat", *boxes, axis=1),
            node("Concat", *scores, axis=2),
            node("Concat", *labels, axis=0),
        )
        # It keeps scores over the threshold and overlaps up to it: these two are the next floats below.
        overlap = numbers([np.nextafter(np.float32(self.param.nms_threshold), np.float32(-1))])
        count = node("Shape", label)
        limits = (count, overlap, numbers([confidence]))
        chosen = node("NonMaxSuppression", box, score, *limits, center_point_box=1)
        kept = node("Gather", chosen, np.array(2), axis=1)
        chosen = node("Gather", node("Squeeze", box, integers(0)), kept)
        middle, extent = graph.nodes("Split", [chosen], 2, axis=1, num_outputs=2)
        half = node("Mul", extent, numbers(0.5))
        columns = [
            node("Unsqueeze", node("Gather", node("Reshape", values, integers(-1)), kept), integers(1))
            for values in (label, score)
        ]
        zero = node("Mul", columns[0], numbers(0))
        found = node("Concat", zero, *columns, node("Sub", middle, half), node("Add", middle, half), axis=1)
        return rows_or_blank(graph, found, bottoms[0])


@register_layer("YoloDetectionOutput")
class YoloDetectionOutput(_YoloOutput):
    """Boxes of one or two square feature maps, N × num_box (5 + num_classes) × S × S, of YOLO 2.

    x = (column + sigmoid) / S, w = exp · bias / S; score = sigmoid(objectness) · the largest softmax, kept from
    `confidence_threshold` on; suppression drops overlaps from `nms_threshold` on, whatever the class.
    Source: MobileNet-YOLO, src/caffe/layers/yolo_detection_output_layer.cpp.
    """

    message = "yolo_detection_output_param"
    fields = ("num_classes", "num_box", "coords", "confidence_threshold", "nms_threshold", "biases")
    # The side is the bottom's; names of labels matter to files that the layer never writes.
    ignored_fields = ("side", "label_map_file")
    bottom_count = (1, 2)
    each_class = False

    def setup(self, *ranks: int) -> None:
        super().setup(*ranks)
        if self.param.coords != 4:
            raise self.error(f"coords {self.param.coords} must be 4: x, y, width and height")
        self.anchors = [[self._anchor(index) for index in range(self.boxes)]] * len(ranks)
        self.scales = [1] * len(ranks)

    def plan(self, *bottoms: Shape) -> LayerPlan:
        plan = super().plan(*bottoms)
        for shape in bottoms:
            if shape[2] != shape[3]:
                raise self.error(
                    f"bottom {list(shape)} must be square: the layer takes its width for both sides"
                )
        return plan

    def forward(self, *bottoms: Tensor) -> tuple[Tensor]:
        values = [bottom.detach() for bottom in bottoms]
        limits = (self.param.confidence_threshold, self.param.nms_threshold)
        return (detect_yolo2(values, self.anchors[0], *limits),)

    def onnx(self, graph: OnnxGraph, *bottoms: str) -> list[str]:
        # Scores from the threshold on are those over the next float below.
        least = np.nextafter(np.float32(self.param.confidence_threshold), np.float32(-1))
        return [self._rows_onnx(graph, bottoms, float(least))]

    def source(self, code: SourceCode, *bottoms: str) -> list[str]:
        limits = f"{literal(self.param.confidence_threshold)}, {literal(self.param.nms_threshold)}"
        call = code.helper(detect_yolo2)
        return [f"{call}([{', '.join(bottoms)}], {exact(self.anchors[0])}, {limits})"]


@register_layer("Yolov3DetectionOutput")
class Yolov3DetectionOutput(_YoloOutput):
    """Boxes of the feature maps N × num_box (5 + num_classes) × H × W of YOLO 3, one per class and anchor.

    x = (column + sigmoid) / W, w = exp · bias / (W · anchors_scale), rows alike; score = sigmoid(class) ·
    sigmoid(objectness), kept over `confidence_threshold`.  Anchor n of bottom t is mask[n + t · (masks /
    mask_group_num)].  Source: MobileNet-YOLO, src/caffe/layers/yolov3_detection_output_layer.cpp.
    """

    message = "yolov3_detection_output_param"
    fields = (
        *("num_classes", "num_box", "confidence_threshold", "nms_threshold"),
        *("biases", "anchors_scale", "mask_group_num", "mask"),
    )
    bottom_count = (1, None)
    each_class = True

    def setup(self, *ranks: int) -> None:
        super().setup(*ranks)
        groups, masks, scales = (
            self.param.mask_group_num,
            list(self.param.mask),
            list(self.param.anchors_scale),
        )
        if len(ranks) != groups:
            raise self.error(f"has {len(ranks)} bottoms; mask_group_num {groups} needs as many")
        if len(scales) < groups or min(scales) < 1:
            raise self.error(f"anchors_scale {scales} must state a number over 0 per bottom")
        step = len(masks) // groups
        if (groups - 1) * step + self.boxes > len(masks):
            raise self.error(f"mask {masks} is too short for {groups} bottoms of num_box {self.boxes}")
        self.scales = scales[:groups]
        self.anchors = [
            [self._anchor(masks[index + group * step]) for index in range(self.boxes)]
            for group in range(groups)
        ]

    def forward(self, *bottoms: Tensor) -> tuple[Tensor]:
        values = [bottom.detach() for bottom in bottoms]
        limits = (self.param.confidence_threshold, self.param.nms_threshold)
        return (detect_yolo3(values, self.anchors, self.scales, *limits),)

    def onnx(self, graph: OnnxGraph, *bottoms: str) -> list[str]:
        return [self._rows_onnx(graph, bottoms, self.param.confidence_threshold)]

    def source(self, code: SourceCode, *bottoms: str) -> list[str]:
        limits = f"{literal(self.param.confidence_threshold)}, {literal(self.param.nms_threshold)}"
        anchors = f"{exact(self.anchors)}, {self.scales}"
        return [f"{code.helper(detect_yolo3)}([{', '.join(bottoms)}], {anchors}, {limits})"]
