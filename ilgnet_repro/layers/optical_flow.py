"""Layers of FlowNet and DispNet: Correlation, Correlation1D, FlowWarp."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers, numbers, uses
from .support.registry import register_layer

# ---------------------------------------------------------------------- torch, also for written source


def correlation(
    a: Tensor,
    b: Tensor,
    pad: tuple[int, int],
    reach: tuple[int, int],
    shifts: tuple[tuple[int, int], ...],
    kernel: int,
    stride: int,
    subtract: bool,
) -> Tensor:
    """Return one channel per shift: the mean over window and channels of a · b (or \\|a - b\\|), b shifted."""
    a, b = (F.pad(x, (pad[1], pad[1], pad[0], pad[0])) for x in (a, b))
    counts = [-(-(a.shape[2 + i] - 2 * reach[i] - kernel + 1) // stride) for i in (0, 1)]
    height, width = ((count - 1) * stride + kernel for count in counts)
    still = a[:, :, reach[0] : reach[0] + height, reach[1] : reach[1] + width]
    tops = []
    for down, right in shifts:
        top, left = reach[0] + down, reach[1] + right
        moved = b[:, :, top : top + height, left : left + width]
        product = (still - moved).abs() if subtract else still * moved
        tops.append(F.avg_pool2d(product.mean(1, keepdim=True), kernel, stride))
    return torch.cat(tops, 1)


def flow_warp(x: Tensor, flow: Tensor, fill: float) -> Tensor:
    """Return the values at each position plus its flow, bilinear; ``fill`` where that is outside the image."""
    height, width = x.shape[2:]
    column = torch.arange(width, device=x.device, dtype=flow.dtype) + flow[:, 0]
    row = torch.arange(height, device=x.device, dtype=flow.dtype)[:, None] + flow[:, 1]
    inside = (column >= 0) & (row >= 0) & (column < width) & (row < height)
    column, row = torch.where(inside, column, 0), torch.where(inside, row, 0)
    left, top = column.detach().long(), row.detach().long()
    right, below = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    across, down = (column - left)[:, None], (row - top)[:, None]
    flat = x.flatten(2)

    def read(y: Tensor, z: Tensor) -> Tensor:
        index = (y * width + z).flatten(1)[:, None].expand(-1, x.shape[1], -1)
        return flat.gather(2, index).reshape(x.shape)

    upper = (1 - across) * read(top, left) + across * read(top, right)
    lower = (1 - across) * read(below, left) + across * read(below, right)
    return torch.where(inside[:, None], (1 - down) * upper + down * lower, fill)


# ---------------------------------------------------------------------- ONNX


def onnx_pixels(graph: OnnxGraph, x: str) -> Callable[[str, str], str]:
    """Return what adds nodes for the values of ``x``, N×C×H×W, at rows and columns that are N×1×H×W integers."""
    channels, height, width = (graph.size(x, axis) for axis in (1, 2, 3))
    flat = graph.node("Reshape", [x, graph.constant(integers(0, 0, -1))])

    def pixels(row: str, column: str) -> str:
        index = graph.node("Add", [graph.node("Mul", [row, graph.constant(integers(width))]), column])
        index = graph.node("Reshape", [index, graph.constant(integers(0, 1, -1))])
        index = graph.node("Expand", [index, graph.constant(integers(1, channels, 1))])
        picked = graph.node("GatherElements", [flat, index], axis=2)
        return graph.node("Reshape", [picked, graph.constant(integers(0, 0, height, width))])

    return pixels


# ---------------------------------------------------------------------- layers

MOST_SHIFTS = 10_000  # each is a slice and a product; FlowNet has 441
MOST_PADDED = 1 << 26  # values of a padded bottom, where it is over 16 times what the bottom and the top hold
MOST_OUTSIDE = 1 << 26  # values of a top, where it has over 16 times the positions of the bottom


class _Correlation(Layer):
    """Shared by both: the mean over `kernel_size`² and the channels of the product of two blobs, one of them shifted."""

    message = "correlation_param"
    # The source reads do_abs and never uses it.
    ignored_fields = ("do_abs",)
    bottom_count = (2, 2)
    is_flat = False  # shifts along rows only

    def setup(self, a: int, b: int) -> None:
        for field in ("kernel_size", "max_displacement"):
            if not self.param.HasField(field):
                raise self.error(f"{field} is missing; state it")
        self.kernel: int = self.param.kernel_size
        if self.kernel % 2 == 0:
            raise self.error(f"kernel_size {self.kernel} must be odd")
        self.stride: int = self.param.stride_1
        for field in ("stride_1", "stride_2"):
            if not getattr(self.param, field):
                raise self.error(f"{field} 0 must be at least 1")
        self.subtract: bool = self.param.correlation_type == self.param.SUBTRACT
        pad, reach, step = self.param.pad, self.param.max_displacement, self.param.stride_2
        self.pad = (0, pad) if self.is_flat else (pad, pad)
        self.reach = (0, reach) if self.is_flat else (reach, reach)
        first, last = self._first(reach // step), reach // step
        count = (last - first + 1) ** (1 if self.is_flat else 2)
        if count > MOST_SHIFTS:
            raise self.error(
                f"max_displacement {reach} with stride_2 {step} gives {count:,} shifts; "
                f"at most {MOST_SHIFTS:,} are supported"
            )
        steps = [i * step for i in range(first, last + 1)]
        self.shifts = tuple((down, right) for down in ([0] if self.is_flat else steps) for right in steps)

    def _first(self, radius: int) -> int:
        return -radius

    def _counts(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = (
            -(-(side + 2 * pad - 2 * reach - self.kernel + 1) // self.stride)
            for side, pad, reach in zip((height, width), self.pad, self.reach, strict=True)
        )
        return rows, columns

    def plan(self, a: Shape, b: Shape) -> LayerPlan:
        if len(a) != 4 or a != b:
            raise self.error(f"bottoms {list(a)} and {list(b)} must be of one shape N×C×H×W")
        counts = self._counts(a[2], a[3])
        if min(counts) < 1:
            raise self.error(
                f"bottom {list(a)} is too small for max_displacement {self.param.max_displacement}, "
                f"kernel_size {self.kernel} and pad {self.param.pad}"
            )
        padded = a[0] * a[1] * (a[2] + 2 * self.pad[0]) * (a[3] + 2 * self.pad[1])
        values = a[0] * len(self.shifts) * prod(counts)
        if values > MOST_OUTSIDE and prod(counts) > 16 * prod(a[2:]):
            raise self.error(
                f"pad {self.param.pad} makes {values:,} values of bottom {list(a)}, most of them of positions outside "
                "it; pad less"
            )
        held = prod(a) + values
        if padded > max(MOST_PADDED, 16 * held):
            raise self.error(
                f"pad {self.param.pad} makes {padded:,} values of bottom {list(a)}, of which the {prod(counts):,} "
                "positions of the top read few; pad less"
            )
        work = a[0] * len(self.shifts) * counts[0] * counts[1] * a[1] * self.kernel**2
        return LayerPlan([(a[0], len(self.shifts), *counts)], multiply_adds=work)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor]:
        return (
            correlation(a, b, self.pad, self.reach, self.shifts, self.kernel, self.stride, self.subtract),
        )

    def onnx(self, graph: OnnxGraph, a: str, b: str) -> list[str]:
        counts = self._counts(graph.size(a, 2), graph.size(a, 3))
        height, width = ((count - 1) * self.stride + self.kernel for count in counts)
        if any(self.pad):
            pads = graph.constant(integers(0, 0, *self.pad, 0, 0, *self.pad))
            a, b = (graph.node("Pad", [x, pads]) for x in (a, b))

        def cut(x: str, down: int, right: int) -> str:
            top, left = self.reach[0] + down, self.reach[1] + right
            ends = (integers(top, left), integers(top + height, left + width), integers(2, 3))
            return graph.node("Slice", [x, *map(graph.constant, ends)])

        still, channels = cut(a, 0, 0), graph.constant(integers(1))
        tops = []
        for down, right in self.shifts:
            both = [still, cut(b, down, right)]
            product = (
                graph.node("Abs", [graph.node("Sub", both)]) if self.subtract else graph.node("Mul", both)
            )
            tops.append(graph.node("ReduceMean", [product, channels], keepdims=1))
        top = graph.node("Concat", tops, axis=1)
        if self.kernel == 1 and self.stride == 1:
            return [top]
        window = {"kernel_shape": [self.kernel] * 2, "strides": [self.stride] * 2}
        return [graph.node("AveragePool", [top], auto_pad="VALID", **window)]

    def source(self, code: SourceCode, a: str, b: str) -> list[str]:
        geometry = f"{self.pad}, {self.reach}, {self.shifts}, {self.kernel}, {self.stride}, {self.subtract}"
        return [f"{code.helper(correlation)}({a}, {b}, {geometry})"]


@register_layer("Correlation")
class Correlation(_Correlation):
    """Shifts of up to `max_displacement` rows and columns in steps of `stride_2`, rows slowest, each one channel.

    With `correlation_type: SUBTRACT` |a - b| takes the place of a · b.  Source: lmb-freiburg/flownet2,
    correlation_layer.cu.
    """

    fields = (
        *("pad", "kernel_size", "max_displacement", "stride_1", "stride_2"),
        "correlation_type",
    )


@register_layer("Correlation1D")
class Correlation1D(_Correlation):
    """As Correlation, with shifts and padding along the columns only; `single_direction: 1` shifts to the right only.

    Source: lmb-freiburg/flownet2, correlation_layer1d.cu.
    """

    fields = (*Correlation.fields, "single_direction")
    is_flat = True

    def _first(self, radius: int) -> int:
        direction = self.param.single_direction
        if direction not in (0, 1):
            raise self.error(
                f"single_direction {direction} is not supported; use 0 (both) or 1 (right): the fork reads outside "
                "the blob for -1"
            )
        return 0 if direction else -radius


@register_layer("FlowWarp")
class FlowWarp(Layer):
    """The first bottom at each position plus the second bottom's (x, y) there, bilinear; 0 or NaN outside.

    Source: lmb-freiburg/flownet2, flow_warp_layer.cpp.
    """

    message = "flow_warp_param"
    fields = ("fill_value",)
    bottom_count = (2, 2)

    def setup(self, x: int, flow: int) -> None:
        self.fill = 0.0 if self.param.fill_value == self.param.ZERO else float("nan")

    def plan(self, x: Shape, flow: Shape) -> LayerPlan:
        if len(x) != 4 or flow != (x[0], 2, *x[2:]):
            raise self.error(f"bottoms {list(x)} and {list(flow)} must be N×C×H×W and N×2×H×W")
        return LayerPlan([x])

    def forward(self, x: Tensor, flow: Tensor) -> tuple[Tensor]:
        return (flow_warp(x, flow, self.fill),)

    def onnx(self, graph: OnnxGraph, x: str, flow: str) -> list[str]:
        from onnx import TensorProto

        def node(op: str, *inputs: str, **attributes: int) -> str:
            return graph.node(op, list(inputs), **attributes)

        height, width = graph.size(x, 2), graph.size(x, 3)
        zero, one = graph.constant(numbers(0)), graph.constant(numbers(1))
        column, row = graph.nodes("Split", [flow], 2, axis=1, num_outputs=2)
        grid = np.arange(max(height, width), dtype=np.float32)
        column = node("Add", column, graph.constant(grid[:width].reshape(1, 1, 1, -1)))
        row = node("Add", row, graph.constant(grid[:height].reshape(1, 1, -1, 1)))
        tests = [
            node(
                "And",
                node("GreaterOrEqual", place, zero),
                node("Less", place, graph.constant(numbers(side))),
            )
            for place, side in ((column, width), (row, height))
        ]
        inside = node("And", *tests)
        column, row = node("Where", inside, column, zero), node("Where", inside, row, zero)
        left, top = node("Floor", column), node("Floor", row)
        right = node("Min", node("Add", left, one), graph.constant(numbers(width - 1)))
        below = node("Min", node("Add", top, one), graph.constant(numbers(height - 1)))
        across, down = node("Sub", column, left), node("Sub", row, top)
        pixels = onnx_pixels(graph, x)
        whole = {name: node("Cast", value, to=TensorProto.INT64)
                 for name, value in (("left", left), ("right", right), ("top", top), ("below", below))}  # fmt: skip

        def read(y: str, z: str) -> str:
            return pixels(whole[y], whole[z])

        def between(part: str, first: str, second: str) -> str:
            return node("Add", node("Mul", node("Sub", one, part), first), node("Mul", part, second))

        rows = [between(across, read(side, "left"), read(side, "right")) for side in ("top", "below")]
        return [node("Where", inside, between(down, *rows), graph.constant(numbers(self.fill)))]

    def source(self, code: SourceCode, x: str, flow: str) -> list[str]:
        fill = "0.0" if self.fill == 0 else "math.nan"
        return [f"{code.helper(flow_warp)}({x}, {flow}, {fill})"]


uses(flow_warp)
uses(correlation)
