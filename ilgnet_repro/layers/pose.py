"""Layers of the pose estimators (CPM, OpenPose): ImResize, which fuses scales, and Nms, which finds peaks."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers, literal, numbers, uses
from .support.detections import node_writer
from .support.registry import register_layer

REACH = 3  # a peak is refined over the pixels up to this far away
MOST_SCALES = 64  # in ONNX, where the batch is open

# ---------------------------------------------------------------------- torch, also for written source


def cubic_weights(length: int, target: int, pad: int) -> Tensor:
    """Return the weights target×length of cubic interpolation in a line without ``pad`` values at each end.

    The spline is Catmull-Rom's; values past the ends repeat the last.
    """
    inner = length - 2 * pad
    place = (torch.arange(target, dtype=torch.float64) - (target / inner / 2 - 0.5)) * (inner / target)
    near = (place + 1e-5).trunc().clamp(min=0).long()
    t = place - near
    after = (near + 1).clamp(max=inner - 1)
    taps = [(near - 1).clamp(min=0), near, after, (after + 1).clamp(max=inner - 1)]
    shares = [
        -0.5 * t**3 + t**2 - 0.5 * t,
        1.5 * t**3 - 2.5 * t**2 + 1,
        -1.5 * t**3 + 2 * t**2 + 0.5 * t,
        0.5 * t**3 - 0.5 * t**2,
    ]
    weights = torch.zeros(target, length, dtype=torch.float64)
    for tap, share in zip(taps, shares, strict=True):
        weights.scatter_add_(1, (tap + pad)[:, None], share[:, None])
    return weights


def scale_pad(length: int, start: float, gap: float, scale: int) -> int:
    """Return how many values at each end of a line of ``length`` are padding in the image of a scale."""
    return math.floor(length // 2 * (1 - start + scale * gap))


def fuse_scales(x: Tensor, target: tuple[int, int], start: float, gap: float) -> Tensor:
    """Return the mean over the scales (images) of x, each without its padding and resized: 1×C×H×W."""
    resized = []
    for scale, image in enumerate(x):
        rows, columns = (
            cubic_weights(length, side, scale_pad(length, start, gap, scale)).to(x)
            for length, side in zip(image.shape[1:], target, strict=True)
        )
        resized.append(rows @ image @ columns.T)
    return torch.stack(resized).mean(0, keepdim=True)


def find_peaks(x: Tensor, threshold: float, most: int) -> Tensor:
    """Return for each map N×P×H×W a row with the number of peaks, then a row x, y, score per peak, ``most`` at most.

    A peak is greater than its eight neighbours; its place is the mean over 7×7 pixels, weighted by their positive
    values.
    """
    n, parts, height, width = x.shape
    around = [
        x[:, :, 1 + dy : height - 1 + dy, 1 + dx : width - 1 + dx]
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
        if dy or dx
    ]
    middle = x[:, :, 1:-1, 1:-1]
    peaks = F.pad((middle > torch.stack(around).amax(0)) & (middle > threshold), (1, 1, 1, 1)).flatten(2)
    # The first row and column take no part, nor do rows from the width on.
    used = x.clamp(min=0).clone()
    used[:, :, 0] = used[:, :, :, 0] = 0
    used[:, :, width:] = 0
    column = torch.arange(width, device=x.device, dtype=x.dtype)
    row = torch.arange(height, device=x.device, dtype=x.dtype)[:, None]
    window = torch.ones(1, 1, 7, 7, device=x.device, dtype=x.dtype)
    sums = [
        F.conv2d(values.reshape(n * parts, 1, height, width), window, padding=3).reshape(
            n, parts, height * width
        )
        for values in (used * column, used * row, used)
    ]
    rows = torch.stack([sums[0] / sums[2], sums[1] / sums[2], x.flatten(2)], 3)
    place = torch.where(peaks, peaks.cumsum(2), most + 1).clamp(max=most + 1)
    top = x.new_zeros(n, parts, most + 2, 3).scatter(2, place[..., None].expand_as(rows), rows)[:, :, :-1]
    top[:, :, 0] = 0
    top[:, :, 0, 0] = peaks.sum(2).to(x.dtype)
    return top


uses(fuse_scales, cubic_weights, scale_pad)

# ---------------------------------------------------------------------- layers


@register_layer("ImResize")
class ImResize(Layer):
    """The images of a batch, which are scales of one, resized by cubic interpolation and averaged: 1×C×H×W.

    The size is `factor` times the bottom's, or `target_spatial_height` × `target_spatial_width`.  Scale n is taken
    without floor(side / 2 · (1 − `start_scale` + n · `scale_gap`)) pixels at each end.
    Source: caffe_rtpose, src/caffe/cpm/layers/imresize_layer.cu.
    """

    message = "imresize_param"
    fields = ("factor", "scale_gap", "start_scale", "target_spatial_height", "target_spatial_width")
    has_gradient = False

    def setup(self, rank: int) -> None:
        self.factor: float = self.param.factor
        self.size = (self.param.target_spatial_height, self.param.target_spatial_width)
        self.start: float = float(str(np.float32(self.param.start_scale)))
        self.gap: float = float(str(np.float32(self.param.scale_gap)))
        if self.factor < 0 or (not self.factor and min(self.size) < 1):
            raise self.error("state a factor over 0, or target_spatial_height and target_spatial_width")

    def _target(self, height: int, width: int) -> tuple[int, int]:
        return (int(height * self.factor), int(width * self.factor)) if self.factor else self.size

    def _fits(self, length: int, scale: int) -> bool:
        pad = scale_pad(length, self.start, self.gap, scale)
        return pad >= 0 and 2 * pad < length

    def plan(self, x: Shape) -> LayerPlan:
        if len(x) != 4:
            raise self.error(f"bottom {list(x)} must be scales×C×H×W")
        for length in x[2:]:
            for scale in {0, x[0] - 1}:
                if not self._fits(length, scale):
                    raise self.error(
                        f"start_scale {self.start:g} and scale_gap {self.gap:g} leave nothing of scale {scale} "
                        f"of {x[0]} in {length} pixels"
                    )
        return LayerPlan([(1, x[1], *self._target(*x[2:]))])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (fuse_scales(x.detach(), self._target(x.shape[2], x.shape[3]), self.start, self.gap),)

    def source(self, code: SourceCode, x: str) -> list[str]:
        size = str(self.size)
        if self.factor:
            height, width = (f"int({x}.shape[{axis}] * {literal(self.factor)})" for axis in (2, 3))
            size = f"({height}, {width})"
        return [f"{code.helper(fuse_scales)}({x}, {size}, {self.start}, {self.gap})"]

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        node = node_writer(graph)
        sides = (graph.size(x, 2), graph.size(x, 3))
        batch = graph.shape(x)[0]
        count = batch or next(
            (scale for scale in range(MOST_SCALES) if not all(self._fits(side, scale) for side in sides)),
            MOST_SCALES,
        )
        tables = []
        for length, side in zip(sides, self._target(*sides), strict=True):
            pads = [scale_pad(length, self.start, self.gap, scale) for scale in range(count)]
            table = numbers(torch.stack([cubic_weights(length, side, pad) for pad in pads])[:, None])
            scales = node("Shape", x, start=0, end=1)
            tables.append(node("Slice", table, integers(0), scales, integers(0)))
        rows, columns = tables
        fused = node("MatMul", node("MatMul", rows, x), node("Transpose", columns, perm=[0, 1, 3, 2]))
        return [node("ReduceMean", fused, integers(0), keepdims=1)]


@register_layer("Nms")
class Nms(Layer):
    """Peaks of heat maps: N×`num_parts`×(`max_peaks` + 1)×3, the number of peaks, then x, y and score of each.

    The number is that of all peaks; unused rows are 0 here, undefined in the fork.
    Source: caffe_rtpose, src/caffe/cpm/layers/nms_layer.cu.
    """

    message = "nms_param"
    fields = ("threshold", "max_peaks", "num_parts")
    ignored_fields = ("num_peak",)  # the fork reads max_peaks
    has_gradient = False

    def setup(self, rank: int) -> None:
        self.parts: int = self.param.num_parts
        self.most: int = self.param.max_peaks
        if min(self.parts, self.most) < 1:
            raise self.error(f"num_parts {self.parts} and max_peaks {self.most} must be over 0")

    def plan(self, x: Shape) -> LayerPlan:
        if len(x) != 4 or x[1] < self.parts or min(x[2:]) < 3:
            raise self.error(
                f"bottom {list(x)} must be N×C×H×W with num_parts {self.parts} channels or more, and at least 3×3"
            )
        if x[1] > self.parts and x[0] > 1:
            raise self.error(
                f"bottom {list(x)} has more channels than num_parts {self.parts}; the layer then takes one image"
            )
        return LayerPlan([(x[0], self.parts, self.most + 1, 3)])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (find_peaks(x.detach()[:, : self.parts], self.param.threshold, self.most),)

    def source(self, code: SourceCode, x: str) -> list[str]:
        call = code.helper(find_peaks)
        return [f"{call}({x}[:, :{self.parts}], {literal(self.param.threshold)}, {self.most})"]

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        from onnx import TensorProto

        node = node_writer(graph)
        height, width = graph.size(x, 2), graph.size(x, 3)
        maps = node("Slice", x, integers(0), integers(self.parts), integers(1))
        low = node("Pad", maps, integers(0, 0, 1, 1, 0, 0, 1, 1), numbers(-np.inf))
        around = [
            node("Slice", low, integers(dy, dx), integers(dy + height, dx + width), integers(2, 3))
            for dy in range(3)
            for dx in range(3)
            if (dy, dx) != (1, 1)
        ]
        inner = np.zeros((height, width), bool)
        inner[1:-1, 1:-1] = True
        high = node("Greater", maps, numbers(self.param.threshold))
        peaks = node("And", node("Greater", maps, node("Max", *around)), high)
        peaks = node("Reshape", node("And", peaks, inner), integers(0, 0, -1))
        mask = np.ones((height, width), np.float32)
        mask[0] = mask[:, 0] = mask[width:] = 0
        used = node("Mul", node("Max", maps, numbers(0)), mask)
        column, row = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
        window = np.ones((self.parts, 1, 2 * REACH + 1, 2 * REACH + 1), np.float32)
        sums = [
            node(
                "Reshape",
                node("Conv", values, window, pads=[REACH] * 4, group=self.parts),
                integers(0, 0, -1),
            )
            for values in (node("Mul", used, column), node("Mul", used, row), used)
        ]
        columns = [
            node("Div", sums[0], sums[2]),
            node("Div", sums[1], sums[2]),
            node("Reshape", maps, integers(0, 0, -1)),
        ]
        rows = node("Concat", *(node("Unsqueeze", values, integers(3)) for values in columns), axis=3)
        ones = node("Cast", peaks, to=TensorProto.INT64)
        last = np.array(self.most + 1)
        place = node("Min", node("Where", peaks, node("CumSum", ones, np.array(2)), last), last)
        place = node("Expand", node("Unsqueeze", place, integers(3)), node("Shape", rows))
        images = node("Shape", x, start=0, end=1)
        blank = node(
            "ConstantOfShape", node("Concat", images, integers(self.parts, self.most + 2, 3), axis=0)
        )
        placed = node("ScatterElements", blank, place, rows, axis=2)
        found = node("Slice", placed, integers(1), integers(self.most + 1), integers(2))
        count = node("Cast", node("ReduceSum", ones, integers(2), keepdims=1), to=TensorProto.FLOAT)
        first = node("Pad", node("Unsqueeze", count, integers(3)), integers(0, 0, 0, 0, 0, 0, 0, 2))
        return [node("Concat", first, found, axis=2)]
