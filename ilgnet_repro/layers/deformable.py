"""DeformableConvolution: a convolution whose taps are moved by offsets from a second bottom (Dai et al., ICCV 2017)."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

from .conv import Spatial
from .support.base import BlobSpec, LayerPlan, OnnxGraph, Shape, SourceCode, integers, numbers, uses
from .support.detections import node_writer
from .support.registry import register_layer
from .support.sampling import sample_bilinear, sample_bilinear_onnx


def tap_places(size: tuple[int, int], window: list[tuple[int, int]]) -> Tensor:
    """Return 2 × taps × H × W: the row and column that each tap of each output reads, without its offset.

    ``window`` is kernel, stride, pad and dilation, each of rows and columns.
    """
    places = []
    for axis in (0, 1):
        taps = torch.arange(window[0][axis]) * window[3][axis] - window[2][axis]
        starts = torch.arange(size[axis]) * window[1][axis]
        grid = taps[:, None] + starts
        places.append(grid[:, None, :, None] if axis == 0 else grid[None, :, None, :])
    return torch.stack([place.expand(*window[0], *size).flatten(0, 1) for place in places])


def deformable_conv2d(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, window: list[tuple[int, int]], groups: int
) -> Tensor:
    """Return the convolution; a tap outside the image is 0, one past the last row or column reads that row or column."""
    n, _, height, width = x.shape
    taps, (rows, columns) = weight.shape[2] * weight.shape[3], offset.shape[2:]
    moved = offset.reshape(n, -1, taps, 2, rows, columns)
    pieces = moved.shape[1]
    places = moved.transpose(2, 3) + tap_places((rows, columns), window).to(x)
    row, column = places.flatten(0, 1).flatten(2).unbind(1)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    row, column = (
        torch.where(place < extent - 1, place, extent - 1)
        for place, extent in ((row, height), (column, width))
    )
    read = sample_bilinear(x.reshape(n * pieces, -1, height, width), row, column) * inside[:, None]
    read = read.reshape(n, groups, -1, rows * columns)
    top = (weight.reshape(groups, weight.shape[0] // groups, -1) @ read).reshape(n, -1, rows, columns)
    return top if bias is None else top + bias[:, None, None]


uses(deformable_conv2d, tap_places, sample_bilinear)


@register_layer("DeformableConvolution")
class DeformableConvolution(Spatial):
    """Bottoms: x N×C×H×W and offsets N×(2 · deformable_group · kernel_h · kernel_w)×H'×W', H'×W' the size of the top.

    Per group of channels and tap, in row order, an offset has a row and a column in pixels.  A tap outside the
    image is 0; between the last pixel and the edge it reads the last pixel.
    Source: unsky/Deformable-ConvNets-caffe, src/caffe/layers/deformable_conv_layer.cu, after MXNet's.
    """

    message = "deformable_convolution_param"
    fields = (
        *("axis", "pad", "pad_h", "pad_w", "kernel_size", "kernel_h", "kernel_w", "stride", "stride_h", "stride_w"),
        *("dilation", "num_output", "bias_term", "group", "deformable_group", "weight_filler", "bias_filler"),
    )  # fmt: skip
    bottom_count = (2, 2)

    def setup(self, rank: int, *others: int) -> None:
        super().setup(rank)
        if self.channel_axis != 1 or len(self.kernel) != 2:
            raise self.error(
                f"needs bottoms N×C×H×W; axis {self.channel_axis} of {rank} axes is not supported"
            )
        self.outputs: int = self.param.num_output
        self.groups: int = self.param.group
        if self.outputs < 1 or self.groups < 1:
            raise self.error(f"num_output {self.outputs} and group {self.groups} must be over 0")

    def _dilation(self, count: int) -> tuple[int, ...]:
        return self._spatial("dilation", count, 1)

    def plan(self, x: Shape, offset: Shape) -> LayerPlan:
        channels = x[1]
        size = tuple(
            (x[2 + axis] + 2 * self.pad[axis] - self.dilation[axis] * (self.kernel[axis] - 1) - 1)
            // self.stride[axis]
            + 1
            for axis in (0, 1)
        )
        if min(size) < 1:
            raise self.error(f"bottom {list(x)} is too small for kernel {list(self.kernel)}")
        pair = 2 * prod(self.kernel)
        pieces = offset[1] // pair if len(offset) == 4 else 0
        stated = self.param.deformable_group if self.param.HasField("deformable_group") else pieces
        if offset != (x[0], pair * stated, *size) or not pieces:
            raise self.error(
                f"offsets {list(offset)} must be {x[0]}×{pair * max(stated, 1)}×{size[0]}×{size[1]}: a row and a column "
                f"for each of {prod(self.kernel)} taps and {max(stated, 1)} groups of channels, of the size of the top"
            )
        if channels % pieces or channels % self.groups or self.outputs % self.groups:
            raise self.error(
                f"{channels} channels must be a multiple of group {self.groups} and of {pieces} groups of offsets, and "
                f"num_output {self.outputs} one of group"
            )
        weight = (self.outputs, channels // self.groups, *self.kernel)
        blobs = [BlobSpec("weight", weight, self.param.weight_filler)]
        if self.param.bias_term:
            blobs.append(BlobSpec("bias", (self.outputs,), self.param.bias_filler))
        return LayerPlan([(x[0], self.outputs, *size)], blobs, x[0] * prod(weight) * prod(size))

    @property
    def _window(self) -> list[tuple[int, int]]:
        kernel, stride, pad, dilation = self.kernel, self.stride, self.pad, self.dilation
        return [(pair[0], pair[1]) for pair in (kernel, stride, pad, dilation)]

    def forward(self, x: Tensor, offset: Tensor) -> tuple[Tensor]:
        bias = self.blob("bias") if self.param.bias_term else None
        return (deformable_conv2d(x, offset, self.blob("weight"), bias, self._window, self.groups),)

    def source(self, code: SourceCode, x: str, offset: str) -> list[str]:
        weight = code.parameter("weight", self.blob("weight"))
        bias = code.parameter("bias", self.blob("bias")) if self.param.bias_term else "None"
        call = code.helper(deformable_conv2d)
        return [f"{call}({x}, {offset}, {weight}, {bias}, {self._window}, {self.groups})"]

    def onnx(self, graph: OnnxGraph, x: str, offset: str) -> list[str]:
        node = node_writer(graph)
        taps = prod(self.kernel)
        height, width = graph.size(x, 2), graph.size(x, 3)
        rows, columns = graph.size(offset, 2), graph.size(offset, 3)
        pieces, channels = graph.size(offset, 1) // (2 * taps), graph.size(x, 1)
        places = tap_places((rows, columns), self._window).numpy().astype(np.float32).reshape(2, -1)
        moved = node("Reshape", offset, integers(-1, taps, 2, rows * columns))
        moved = node(
            "Reshape", node("Transpose", moved, perm=[0, 2, 1, 3]), integers(-1, 2, taps * rows * columns)
        )
        moved = node("Add", moved, places)
        points, kept = [], []
        for axis, extent in ((0, height), (1, width)):
            place = node("Slice", moved, integers(axis), integers(axis + 1), integers(1))
            place = node("Squeeze", place, integers(1))
            kept += [node("GreaterOrEqual", place, numbers(0)), node("Less", place, numbers(extent))]
            points.append(node("Min", place, numbers(extent - 1)))
        inside = node("And", node("And", *kept[:2]), node("And", *kept[2:]))
        maps = node("Reshape", x, integers(-1, channels // pieces, height, width))
        read = sample_bilinear_onnx(node, maps, *points)
        read = node("Where", node("Unsqueeze", inside, integers(1)), read, numbers(0))
        read = node(
            "Reshape", read, integers(-1, self.groups, channels // self.groups * taps, rows * columns)
        )
        weight = node(
            "Reshape", graph.parameter("weight"), integers(1, self.groups, self.outputs // self.groups, -1)
        )
        top = node("Reshape", node("MatMul", weight, read), integers(-1, self.outputs, rows, columns))
        if self.param.bias_term:
            top = node("Add", top, node("Reshape", graph.parameter("bias"), integers(1, -1, 1, 1)))
        return [top]
