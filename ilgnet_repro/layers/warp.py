"""Layers of LiteFlowNet that read an image at given places: Grid and Warp."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .optical_flow import onnx_pixels
from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers, numbers
from .support.registry import register_layer

# ---------------------------------------------------------------------- torch, also for written source


def pixel_grid(x: Tensor) -> Tensor:
    """Return each position's column and row as two channels."""
    # bfloat16 cannot represent column 257.
    dtype = torch.promote_types(x.dtype, torch.float32)
    row, column = (torch.arange(side, device=x.device, dtype=dtype) for side in x.shape[2:])
    grid = torch.stack([column.expand(len(row), -1), row[:, None].expand(-1, len(column))])
    return grid.repeat(x.shape[0], 1, 1, 1)


def warp(x: Tensor, places: Tensor) -> Tensor:
    """Return the values at (column, row) of each position, bilinear; pixels outside the image count as 0."""
    height, width = x.shape[2:]
    column, row = places[:, :1], places[:, 1:]
    left, top = column.detach().floor(), row.detach().floor()
    across, down = column - left, row - top
    flat = x.flatten(2)
    corners = (
        (top, left, (1 - down) * (1 - across)),
        (top, left + 1, (1 - down) * across),
        (top + 1, left, down * (1 - across)),
        (top + 1, left + 1, down * across),
    )
    result = torch.zeros_like(x)
    for y, z, share in corners:
        inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
        index = torch.where(inside, y, 0).long() * width + torch.where(inside, z, 0).long()
        picked = flat.gather(2, index.flatten(2).expand(-1, x.shape[1], -1)).reshape(x.shape)
        result = result + share * torch.where(inside, picked, 0)
    return result


# ---------------------------------------------------------------------- layers


@register_layer("Grid")
class Grid(Layer):
    """The column and the row of each position of the bottom, N×2×H×W.

    Source: twhui/LiteFlowNet, grid_layer.cpp.
    """

    has_gradient = False

    def plan(self, x: Shape) -> LayerPlan:
        if len(x) != 4:
            raise self.error(f"bottom {list(x)} must be N×C×H×W")
        return LayerPlan([(x[0], 2, *x[2:])])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (pixel_grid(x),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        height, width = graph.size(x, 2), graph.size(x, 3)
        row, column = np.meshgrid(*map(np.arange, (height, width)), indexing="ij")
        grid = graph.constant(np.stack([column, row])[None].astype(np.float32))
        ones = graph.constant(integers(1, 1, 1))
        shape = graph.node("Concat", [graph.node("Shape", [x], start=0, end=1), ones], axis=0)
        return [graph.node("Expand", [grid, shape])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"{code.helper(pixel_grid)}({x})"]


@register_layer("Warp")
class Warp(Layer):
    """The first bottom at the second's places (column and row in pixels), bilinear; a pixel outside counts as 0.

    The gradient is that of the formula, for both bottoms.  Source: twhui/LiteFlowNet, warp_layer.cpp.
    """

    bottom_count = (2, 2)

    def plan(self, x: Shape, places: Shape) -> LayerPlan:
        if len(x) != 4 or places != (x[0], 2, *x[2:]):
            raise self.error(
                f"bottoms {list(x)} and {list(places)} must be N×C×H×W and N×2×H×W: the fork reads the places of an "
                "image's own size"
            )
        return LayerPlan([x])

    def forward(self, x: Tensor, places: Tensor) -> tuple[Tensor]:
        return (warp(x, places),)

    def onnx(self, graph: OnnxGraph, x: str, places: str) -> list[str]:
        from onnx import TensorProto

        def node(op: str, *inputs: str, **attributes: int) -> str:
            return graph.node(op, list(inputs), **attributes)

        height, width = graph.size(x, 2), graph.size(x, 3)
        zero, one = graph.constant(numbers(0)), graph.constant(numbers(1))
        column, row = graph.nodes("Split", [places], 2, axis=1, num_outputs=2)
        left, top = node("Floor", column), node("Floor", row)
        across, down = node("Sub", column, left), node("Sub", row, top)
        rest_across, rest_down = node("Sub", one, across), node("Sub", one, down)
        right, below = node("Add", left, one), node("Add", top, one)
        pixels = onnx_pixels(graph, x)

        def inside(place: str, side: int) -> str:
            limit = graph.constant(numbers(side))
            return node("And", node("GreaterOrEqual", place, zero), node("Less", place, limit))

        def corner(y: str, z: str, share: str) -> str:
            is_inside = node("And", inside(y, height), inside(z, width))
            safe_y, safe_z = (
                node("Cast", node("Where", is_inside, place, zero), to=TensorProto.INT64) for place in (y, z)
            )
            return node("Mul", share, node("Where", is_inside, pixels(safe_y, safe_z), zero))

        corners = [
            corner(top, left, node("Mul", rest_down, rest_across)),
            corner(top, right, node("Mul", rest_down, across)),
            corner(below, left, node("Mul", down, rest_across)),
            corner(below, right, node("Mul", down, across)),
        ]
        return [graph.node("Sum", corners)]

    def source(self, code: SourceCode, x: str, places: str) -> list[str]:
        return [f"{code.helper(warp)}({x}, {places})"]
