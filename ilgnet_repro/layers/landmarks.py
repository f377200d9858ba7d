"""Layers around facial landmarks of happynear's Caffe: Hotspot and SubRegion."""

from __future__ import annotations

import math
from math import prod

import numpy as np
import torch
from torch import Tensor

from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers, literal, numbers, uses
from .support.detections import node_writer
from .support.registry import register_layer

LEAST_HEIGHT = 1e-4  # what the fork takes as 0

# ---------------------------------------------------------------------- torch, also for written source


def hotspots(
    points: Tensor, data: tuple[int, int], size: tuple[int, int], std: float, shift: float
) -> Tensor:
    """Return N×P×H×W with a Gaussian of integral 1 around each of P points, x and y in turn; small values are 0."""
    points = points.detach().reshape(points.shape[0], -1, 2)
    parts = []
    for axis in (1, 0):
        place = (points[:, :, 1 - axis] / data[axis] + shift) * size[axis]
        here = torch.arange(size[axis], dtype=points.dtype, device=points.device)
        parts.append((here - place[:, :, None]).square())
    columns, rows = parts
    top = (-0.5 / std**2 * (rows[:, :, :, None] + columns[:, :, None])).exp() * (0.5 / std**2 / math.pi)
    return torch.where(top > 1e-4, top, 0)


def region_starts(
    points: Tensor, data: tuple[int, int], extent: tuple[int, int], region: tuple[int, int]
) -> Tensor:
    """Return N×P×2, the first row and column of the regions around P points; x and y are from the data's middle."""
    points = points.detach().reshape(points.shape[0], -1, 2).flip(2)
    scale, whole, half = (
        points.new_tensor(values) for values in (data, extent, [length // 2 for length in region])
    )
    return ((points / scale + 0.5) * whole - half).floor()


def sub_regions(
    x: Tensor, points: Tensor, data: tuple[int, int], region: tuple[int, int], as_channels: bool
) -> Tensor:
    """Return a region of x around each point, 0 outside x: as channels N×P·C, or as images P·N×C."""
    extent = (x.shape[2], x.shape[3])
    starts = region_starts(points, data, extent, region)
    places, valid = [], []
    for axis in (0, 1):
        place = starts[:, :, axis, None].long() + torch.arange(region[axis], device=x.device)
        valid.append((place >= 0) & (place < extent[axis]))
        places.append(place.clamp(0, extent[axis] - 1))
    index = places[0][:, :, :, None] * extent[1] + places[1][:, :, None]
    inside = valid[0][:, :, :, None] & valid[1][:, :, None]
    read = x.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, x.shape[1], -1))
    values = torch.where(inside[:, None], read.unflatten(2, index.shape[1:]), 0)
    if as_channels:
        return values.transpose(1, 2).flatten(1, 2)
    return values.permute(2, 0, 1, 3, 4).flatten(0, 1)


def region_centres(x: Tensor, points: Tensor, data: tuple[int, int], region: tuple[int, int]) -> Tensor:
    """Return N×P×2, the middles x and y of the regions in pixels of the data."""
    extent = (x.shape[2], x.shape[3])
    starts = region_starts(points, data, extent, region)
    scale, whole, length = (starts.new_tensor(values) for values in (data, extent, region))
    return ((starts + length / 2 + 0.5) / whole * scale).flip(2)


uses(sub_regions, region_starts)
uses(region_centres, region_starts)

# ---------------------------------------------------------------------- layers


class _Landmarks(Layer):
    """Layers that read P points as N×2P."""

    def _points(self, points: Shape, what: str = "points") -> int:
        if len(points) < 2 or points[1] % 2 or prod(points[2:]) != 1:
            raise self.error(f"{what} {list(points)} must be N×2P: x and y of each point")
        return points[1] // 2

    def _pair(self, name: str) -> tuple[int, int]:
        pair = (getattr(self.param, f"{name}_height"), getattr(self.param, f"{name}_width"))
        if not all(pair):
            raise self.error(f"{name}_height {pair[0]} and {name}_width {pair[1]} must be over 0")
        return pair


@register_layer("Hotspot")
class Hotspot(_Landmarks):
    """A map per point with a Gaussian of standard deviation ``gaussian_std`` and integral 1 around it.

    Points are in pixels of ``data_width`` × ``data_height``, from their middle with ``mean_removed``.  Values of 1e-4 and
    less are 0.  Without an output size the map has the size of the second bottom.
    Source: happynear/caffe-windows, hotspot_layer.cpp, which has no backward pass.
    """

    message = "hotspot_param"
    fields = ("gaussian_std", "output_height", "output_width", "data_height", "data_width", "mean_removed")
    bottom_count = (1, 2)
    has_gradient = False

    def setup(self, *ranks: int) -> None:
        self.data = self._pair("data")
        self.std: float = self.param.gaussian_std
        if not self.std > 0:
            raise self.error(f"gaussian_std {self.std:g} must be over 0")
        self.shift = 0.5 if self.param.mean_removed else 0.0
        stated = (self.param.output_height, self.param.output_width)
        self.stated: tuple[int, int] | None = stated if all(stated) else None
        if self.stated is None and len(ranks) == 1:
            raise self.error(
                "output_height or output_width is 0; state both, or give a second bottom of that size"
            )

    def plan(self, points: Shape, *like: Shape) -> LayerPlan:
        count = self._points(points)
        if self.stated is None and len(like[0]) != 4:
            raise self.error(f"the second bottom {list(like[0])} must be N×C×H×W")
        return LayerPlan([(points[0], count, *(self.stated or like[0][2:]))])

    def forward(self, points: Tensor, *like: Tensor) -> tuple[Tensor]:
        size = self.stated or (like[0].shape[2], like[0].shape[3])
        return (hotspots(points, self.data, size, self.std, self.shift),)

    def onnx(self, graph: OnnxGraph, points: str, *like: str) -> list[str]:
        node = node_writer(graph)
        size = self.stated or (graph.size(like[0], 2), graph.size(like[0], 3))
        pairs = node("Reshape", points, integers(0, -1, 2))
        parts = []
        for axis in (1, 0):
            place = node("Gather", pairs, integers(1 - axis).reshape(()), axis=2)
            place = node("Div", place, numbers(float(self.data[axis])))
            place = node("Mul", node("Add", place, numbers(self.shift)), numbers(float(size[axis])))
            apart = node(
                "Sub", np.arange(size[axis], dtype=np.float32), node("Unsqueeze", place, integers(2))
            )
            parts.append(node("Unsqueeze", node("Mul", apart, apart), integers(2 if axis else 3)))
        power = node("Mul", node("Add", *parts), numbers(-0.5 / self.std**2))
        top = node("Mul", node("Exp", power), numbers(0.5 / self.std**2 / math.pi))
        return [node("Where", node("Greater", top, numbers(LEAST_HEIGHT)), top, numbers(0.0))]

    def source(self, code: SourceCode, points: str, *like: str) -> list[str]:
        size = self.stated or f"tuple({like[0]}.shape[2:])"
        rest = f"{self.data}, {size}, {literal(self.std)}, {self.shift}"
        return [f"{code.helper(hotspots)}({points}, {rest})"]


@register_layer("SubRegion")
class SubRegion(_Landmarks):
    """A region of ``region_height`` × ``region_width`` of x around each point; 0 outside x.

    Bottoms: x, points N×2P and their true places N×2P, in pixels of ``data_width`` × ``data_height`` from their middle.
    The regions of an image are channels, or with ``as_dim: 0`` images, the points' in turn.  Second and third top: the
    true places from the middles of the regions, and these.
    Source: happynear/caffe-windows, sub_region_layer.cu.
    """

    message = "sub_region_param"
    fields = ("region_height", "region_width", "data_height", "data_width", "as_dim")
    bottom_count = (3, 3)
    top_count = (1, 3)

    def setup(self, *ranks: int) -> None:
        self.data, self.region = self._pair("data"), self._pair("region")
        self.as_channels = self.param.as_dim != 0
        if len(self.node.tops) == 2:
            raise self.error("has 2 tops; give it the regions, or also both offsets")

    def plan(self, x: Shape, points: Shape, truth: Shape) -> LayerPlan:
        if len(x) != 4:
            raise self.error(f"bottom {list(x)} must be N×C×H×W")
        count = self._points(points)
        if truth[:2] != points[:2] or points[0] != x[0] or self._points(truth, "true points") != count:
            raise self.error(
                f"needs as many points {list(points)} and true points {list(truth)} as images {list(x)}"
            )
        shape = (x[0], count * x[1]) if self.as_channels else (count * x[0], x[1])
        return LayerPlan([(*shape, *self.region), points, points][: len(self.node.tops)])

    def forward(self, x: Tensor, points: Tensor, truth: Tensor) -> tuple[Tensor, ...]:
        top = sub_regions(x, points, self.data, self.region, self.as_channels)
        if len(self.node.tops) == 1:
            return (top,)
        middles = region_centres(x, points, self.data, self.region)
        half = middles.new_tensor([self.data[1] // 2, self.data[0] // 2])
        true = truth.detach().reshape(middles.shape) + half - middles
        return top, true.reshape(points.shape), middles.reshape(points.shape)

    def onnx(self, graph: OnnxGraph, x: str, points: str, truth: str) -> list[str]:
        from onnx import TensorProto

        node = node_writer(graph)
        extent = (graph.size(x, 2), graph.size(x, 3))
        count = graph.size(points, 1) // 2
        pairs = node("Reshape", points, integers(0, -1, 2))
        scale, whole, half = (
            np.asarray(values[::-1], np.float32)
            for values in (self.data, extent, [length // 2 for length in self.region])
        )
        place = node("Mul", node("Add", node("Div", pairs, scale), numbers(0.5)), whole)
        starts = node("Floor", node("Sub", place, half))  # x and y
        places, valid = [], []
        for axis in (0, 1):
            first = node("Gather", starts, integers(1 - axis), axis=2)
            line = node("Add", first, np.arange(self.region[axis], dtype=np.float32))
            inside = node(
                "And",
                node("GreaterOrEqual", line, numbers(0.0)),
                node("Less", line, numbers(float(extent[axis]))),
            )
            line = node(
                "Cast",
                node("Clip", line, numbers(0.0), numbers(float(extent[axis] - 1))),
                to=TensorProto.INT64,
            )
            places.append(node("Unsqueeze", line, integers(3 - axis)))
            valid.append(node("Unsqueeze", inside, integers(3 - axis)))
        index = node("Add", node("Mul", places[0], integers(extent[1])), places[1])
        maps = node(
            "Reshape",
            node("Transpose", x, perm=[0, 2, 3, 1]),
            integers(0, extent[0] * extent[1], graph.size(x, 1)),
        )
        read = node("GatherND", maps, node("Unsqueeze", index, integers(4)), batch_dims=1)
        inside = node("Unsqueeze", node("And", *valid), integers(4))
        values = node("Where", inside, read, numbers(0.0))  # N×P×h×w×C
        order = [0, 1, 4, 2, 3] if self.as_channels else [1, 0, 4, 2, 3]
        channels = graph.size(x, 1) * (count if self.as_channels else 1)
        top = node("Reshape", node("Transpose", values, perm=order), integers(-1, channels, *self.region))
        if len(self.node.tops) == 1:
            return [top]
        middle = np.asarray(self.region[::-1], np.float32) / np.float32(2) + np.float32(0.5)
        middles = node("Mul", node("Div", node("Add", starts, middle), whole), scale)
        middles = node(
            "Reshape",
            middles,
            integers(-1, *(graph.size(points, axis) for axis in range(1, len(graph.shape(points))))),
        )
        offset = np.tile(np.asarray([self.data[1] // 2, self.data[0] // 2], np.float32), count)
        offset = offset.reshape(-1, *[1] * (len(graph.shape(points)) - 2))
        return [top, node("Sub", node("Add", truth, offset), middles), middles]

    def source(self, code: SourceCode, x: str, points: str, truth: str) -> list[str]:
        top = f"{code.helper(sub_regions)}({x}, {points}, {self.data}, {self.region}, {self.as_channels})"
        if len(self.node.tops) == 1:
            return [top]
        middles = f"{code.helper(region_centres)}({x}, {points}, {self.data}, {self.region}).reshape({points}.shape)"
        half = f"{points}.new_tensor([{self.data[1] // 2}, {self.data[0] // 2}])"
        pairs = f"{truth}.detach().reshape({points}.shape[0], -1, 2)"
        return [top, f"({pairs} + {half}).reshape({points}.shape) - {middles}", middles]
