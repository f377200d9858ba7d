"""Pooling over regions of interest: ROIPooling (Fast R-CNN) and PSROIPooling (R-FCN)."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers, literal, numbers, uses
from .support.labels import to_indices
from .support.registry import register_layer

# ---------------------------------------------------------------------- torch, also for written source


def c_round(x: Tensor) -> Tensor:
    """Round half away from zero, as C does; torch rounds half to even."""
    return torch.sign(x) * torch.floor(x.abs() + 0.5)


def widened(rois: Tensor, pad_ratio: float) -> Tensor:
    """Return regions (image, x1, y1, x2, y2) that reach further by a share of their width and height on each side."""
    rois = rois.to(torch.promote_types(rois.dtype, torch.float32))
    image, low, high = rois.split([1, 2, 2], 1)
    pad = (high - low + 1) * pad_ratio
    return torch.cat([image, low - pad, high + pad], 1)


def roi_pooling(
    x: Tensor, rois: Tensor, pooled: tuple[int, int], scale: float, pad_ratio: float = 0
) -> Tensor:
    """Return the maximum of each bin of each region (image, x1, y1, x2, y2 in pixels of the net's input).

    The bins of a region overlap and differ in size.  A bin's maximum is that of four windows with sides
    of powers of two, from tables computed once for all regions.
    """
    corners = c_round(widened(rois, pad_ratio)[:, 1:] * scale)
    spans = []
    for axis in (0, 1):  # rows, columns
        first, last = corners[:, 1 - axis], corners[:, 3 - axis]
        count, extent = pooled[axis], x.shape[2 + axis]
        size = ((last - first + 1).clamp(min=1) / count)[:, None]
        bins = torch.arange(count, device=x.device, dtype=corners.dtype)
        start = ((bins * size).floor() + first[:, None]).clamp(0, extent).long()
        end = (((bins + 1) * size).ceil() + first[:, None]).clamp(0, extent).long()
        length = end - start
        # frexp returns the exact exponent, where a logarithm might round.
        level = (torch.frexp(length.clamp(min=1).to(torch.float32)).exponent - 1).long()
        near, far = start.clamp(max=extent - 1), (end - (1 << level)).clamp(min=0)
        spans.append((near, far, level, length))
    (top, bottom, tall, height), (left, right, wide, width) = spans

    tables = []
    rows = x
    levels = [int(extent).bit_length() for extent in x.shape[2:]]
    for i in range(levels[0]):
        table = rows
        for j in range(levels[1]):
            shape = (0, x.shape[3] - table.shape[3], 0, x.shape[2] - table.shape[2])
            tables.append(F.pad(table, shape))
            if j + 1 < levels[1]:
                table = torch.maximum(table[..., : -(1 << j)], table[..., 1 << j :])
        if i + 1 < levels[0]:
            rows = torch.maximum(rows[:, :, : -(1 << i)], rows[:, :, 1 << i :])
    maxima = torch.stack(tables).permute(0, 1, 3, 4, 2)  # table, image, row, column, channel

    image = rois[:, 0].long()[:, None, None]
    chosen = tall[:, :, None] * levels[1] + wide[:, None, :]
    places = [(row[:, :, None], column[:, None]) for row in (top, bottom) for column in (left, right)]
    best = torch.stack([maxima[chosen, image, row, column] for row, column in places]).max(0).values
    empty = (height <= 0)[:, :, None] | (width <= 0)[:, None, :]
    return torch.where(empty[..., None], 0, best).permute(0, 3, 1, 2)


def psroi_pooling(x: Tensor, rois: Tensor, outputs: int, group: int, scale: float) -> Tensor:
    """Return the mean of each bin of each region, where each bin reads different channels (R-FCN).

    Sums are differences of a cumulative sum over rows and columns, which needs double precision.
    """
    corners = c_round(rois[:, 1:].to(torch.promote_types(rois.dtype, torch.float32)))
    total = F.pad(x.double().cumsum(2).cumsum(3), (1, 0, 1, 0))
    total = total.reshape(total.shape[0], outputs, group, group, *total.shape[2:])
    bins = torch.arange(group, device=x.device)
    spans = []
    for axis in (0, 1):  # rows, columns
        first, last = corners[:, 1 - axis, None] * scale, (corners[:, 3 - axis, None] + 1) * scale
        size = (last - first).clamp(min=0.1) / group
        start = (bins * size + first).floor().clamp(0, x.shape[2 + axis]).long()
        end = ((bins + 1) * size + first).ceil().clamp(0, x.shape[2 + axis]).long()
        spans.append((start, end))
    (top, bottom), (left, right) = [[edge[:, None] for edge in span] for span in spans]

    image = rois[:, 0].long()[:, None, None, None]
    channel = torch.arange(outputs, device=x.device)[:, None, None]

    def read(row: Tensor, column: Tensor) -> Tensor:
        return total[image, channel, bins[:, None], bins, row[..., None], column[..., None, :]]

    sums = read(bottom, right) - read(top, right) - read(bottom, left) + read(top, left)
    area = (bottom - top).clamp(min=0)[..., None] * (right - left).clamp(min=0)[..., None, :]
    return torch.where(area > 0, sums / area.clamp(min=1), 0).to(x.dtype)


uses(roi_pooling, c_round, widened)
uses(psroi_pooling, c_round)

# ---------------------------------------------------------------------- layers


def widened_onnx(graph: OnnxGraph, rois: str, pad_ratio: float) -> str:
    """Add `widened` of the regions as R×5."""
    rois = graph.node("Reshape", [rois, graph.constant(integers(-1, 5))])
    if not pad_ratio:
        return rois
    lengths = graph.constant(integers(1, 2, 2))
    image, low, high = graph.nodes("Split", [rois, lengths], 3, axis=1)
    size = graph.node("Add", [graph.node("Sub", [high, low]), graph.constant(numbers(1))])
    pad = graph.node("Mul", [size, graph.constant(numbers(pad_ratio))])
    return graph.node(
        "Concat", [image, graph.node("Sub", [low, pad]), graph.node("Add", [high, pad])], axis=1
    )


class _Regions(Layer):
    """Bottoms: N×C×H×W, and R×5: an image's number and a region's corners in pixels, inclusive."""

    bottom_count = (2, 2)

    def _check(self, x: Shape, rois: Shape) -> None:
        if len(x) != 4:
            raise self.error(f"bottom {list(x)} must be N×C×H×W")
        if len(rois) < 2 or math.prod(rois[1:]) != 5:
            raise self.error(f"regions {list(rois)} must be R×5: image, x1, y1, x2, y2")

    def _regions(self, x: Tensor, rois: Tensor) -> Tensor:
        rois = rois.detach().flatten(1)
        to_indices(self, rois[:, 0], x.shape[0], "a region's image number")
        return rois


class RegionPooling(_Regions):
    """Layers that read `roi_pooling_param`; `pad_ratio`, of Cascade R-CNN, widens the regions."""

    message = "roi_pooling_param"
    fields: ClassVar[tuple[str, ...]] = ("pooled_h", "pooled_w", "spatial_scale", "pad_ratio")

    def setup(self, x: int, rois: int) -> None:
        self.pooled: tuple[int, int] = (self.param.pooled_h, self.param.pooled_w)
        self.pad_ratio: float = self.param.pad_ratio
        if not all(self.pooled):
            raise self.error(f"pooled_h {self.pooled[0]} and pooled_w {self.pooled[1]} must be over 0")


@register_layer("ROIPooling")
class ROIPooling(RegionPooling):
    """Max pooling of regions to one size (Girshick, ICCV 2015), with its rounding of corners and bins."""

    def plan(self, x: Shape, rois: Shape) -> LayerPlan:
        self._check(x, rois)
        return LayerPlan([(rois[0], x[1], *self.pooled)])

    def forward(self, x: Tensor, rois: Tensor) -> tuple[Tensor]:
        return (
            roi_pooling(x, self._regions(x, rois), self.pooled, self.param.spatial_scale, self.pad_ratio),
        )

    def onnx(self, graph: OnnxGraph, x: str, rois: str) -> list[str]:
        rois = widened_onnx(graph, rois, self.pad_ratio)
        scale = self.param.spatial_scale
        return [graph.node("MaxRoiPool", [x, rois], pooled_shape=self.pooled, spatial_scale=scale)]

    def source(self, code: SourceCode, x: str, rois: str) -> list[str]:
        rest = literal(self.param.spatial_scale) + (f", {literal(self.pad_ratio)}" if self.pad_ratio else "")
        return [f"{code.helper(roi_pooling)}({x}, {rois}.flatten(1), {self.pooled}, {rest})"]


@register_layer("PSROIPooling")
class PSROIPooling(_Regions):
    """Position-sensitive average pooling of regions (Dai et al., NIPS 2016) to group_size² bins."""

    message = "psroi_pooling_param"
    fields = ("output_dim", "group_size", "spatial_scale")

    def setup(self, x: int, rois: int) -> None:
        self.outputs: int = self.param.output_dim
        self.group: int = self.param.group_size
        if self.outputs < 1 or self.group < 1 or self.param.spatial_scale <= 0:
            raise self.error("output_dim, group_size and spatial_scale must all be stated and over 0")

    def plan(self, x: Shape, rois: Shape) -> LayerPlan:
        self._check(x, rois)
        channels = self.outputs * self.group**2
        if x[1] != channels:
            raise self.error(f"bottom has {x[1]} channels; output_dim × group_size² takes {channels}")
        return LayerPlan([(rois[0], self.outputs, self.group, self.group)])

    def forward(self, x: Tensor, rois: Tensor) -> tuple[Tensor]:
        regions = self._regions(x, rois)
        return (psroi_pooling(x, regions, self.outputs, self.group, self.param.spatial_scale),)

    def onnx(self, graph: OnnxGraph, x: str, rois: str) -> list[str]:
        from onnx import TensorProto

        def node(op: str, *inputs: str, **attributes: int) -> str:
            return graph.node(op, list(inputs), **attributes)

        def cast(value: str, to: int) -> str:
            return node("Cast", value, to=to)

        int64, single, double = TensorProto.INT64, TensorProto.FLOAT, TensorProto.DOUBLE
        total = cast(x, double)
        for axis in (2, 3):
            total = node("CumSum", total, graph.constant(np.array(axis)))
        total = node("Pad", total, graph.constant(integers(0, 0, 1, 1, 0, 0, 0, 0)))
        shape = graph.shape(x)
        if shape[2] is None or shape[3] is None:
            front = node("Shape", x, start=0, end=1)
            middle = graph.constant(integers(self.outputs, self.group, self.group))
            grouped = node("Concat", front, middle, node("Shape", total, start=2), axis=0)
        else:
            sides = (shape[2] + 1, shape[3] + 1)
            grouped = graph.constant(integers(-1, self.outputs, self.group, self.group, *sides))
        total = node("Reshape", total, grouped)

        half, scale = graph.constant(numbers(0.5)), graph.constant(numbers(self.param.spatial_scale))
        rois = node("Reshape", rois, graph.constant(integers(-1, 5)))
        columns = graph.nodes("Split", [rois], 5, axis=1, num_outputs=5)
        rounded = [
            node("Mul", node("Sign", column), node("Floor", node("Add", node("Abs", column), half)))
            for column in columns[1:]
        ]
        bins = np.arange(self.group)
        limits = []
        for axis in (2, 3):
            extent = shape[axis]
            if extent is None:
                length = node("Squeeze", node("Shape", x, start=axis, end=axis + 1))
                limits.append(cast(length, single))
            else:
                limits.append(graph.constant(numbers(extent)))

        def edges(axis: int) -> list[str]:
            """Add the first and last bound of each bin of each region, R×group."""
            first = node("Mul", rounded[1 - axis], scale)
            last = node("Mul", node("Add", rounded[3 - axis], graph.constant(numbers(1))), scale)
            least = node("Max", node("Sub", last, first), graph.constant(numbers(0.1)))
            size = node("Div", least, graph.constant(numbers(self.group)))
            bounds = []
            for offset, rounding in ((0, "Floor"), (1, "Ceil")):
                steps = graph.constant(numbers((bins + offset).tolist()))
                edge = node(rounding, node("Add", node("Mul", size, steps), first))
                limit = limits[axis]
                bounds.append(cast(node("Clip", edge, graph.constant(numbers(0)), limit), int64))
            return bounds

        # Everything is broadcast to R×outputs×group×group.
        rows = [node("Unsqueeze", edge, graph.constant(integers(1, 3))) for edge in edges(0)]
        across = [node("Unsqueeze", edge, graph.constant(integers(1, 2))) for edge in edges(1)]
        channel = graph.constant(np.arange(self.outputs).reshape(-1, 1, 1))
        image = node("Unsqueeze", cast(columns[0], int64), graph.constant(integers(2, 3)))
        broadcast = node("Shape", node("Add", node("Add", node("Add", rows[0], across[0]), channel), image))

        def read(row: str, column: str) -> str:
            places = (image, channel, graph.constant(bins[:, None]), graph.constant(bins), row, column)
            last = graph.constant(integers(4))
            index = [node("Unsqueeze", node("Expand", place, broadcast), last) for place in places]
            return node("GatherND", total, node("Concat", *index, axis=4))

        (top, bottom), (left, right) = rows, across
        below = node("Sub", read(bottom, right), read(bottom, left))
        sums = node("Sub", below, node("Sub", read(top, right), read(top, left)))
        # An empty bin has sum 0, so the divisor does not matter.
        area = node("Mul", node("Sub", bottom, top), node("Sub", right, left))
        area = cast(node("Max", area, graph.constant(np.array(1))), double)
        return [cast(node("Div", sums, area), single)]

    def source(self, code: SourceCode, x: str, rois: str) -> list[str]:
        rest = f"{self.outputs}, {self.group}, {literal(self.param.spatial_scale)}"
        return [f"{code.helper(psroi_pooling)}({x}, {rois}.flatten(1), {rest})"]
