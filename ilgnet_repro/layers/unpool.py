"""UnPooling: spreads each value over a window, the reverse of a pooling without its mask; and Flip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers, numbers, uses
from .support.registry import register_layer

Pair = tuple[int, int]

# ---------------------------------------------------------------------- torch, also for written source


def centers(count: int, size: int, kernel: int, stride: int, pad: int) -> tuple[Tensor, Tensor]:
    """Return for each position of the top the value placed there, and whether there is one; the last one stays."""
    index = torch.full((size,), -1)
    for i in range(count):
        middle = int((2 * (i * stride - pad) + kernel - 1) / 2)  # rounded towards zero, as in C
        index[min(max(middle, 0), size - 1)] = i
    return index.clamp(min=0), index >= 0


def covered(count: int, size: int, kernel: int, stride: int, pad: int) -> tuple[Tensor, Tensor]:
    """Return the length of each value's window with its padding, and how many windows contain each position."""
    start = torch.arange(count) * stride - pad
    length = (start + kernel).clamp(max=size + pad) - start
    position = torch.arange(size)
    begun, ended = (torch.searchsorted(edges, position, right=True) for edges in (start, start + kernel))
    return length.float(), (begun - ended).float()


def window_sums(x: Tensor, axis: int, kernel: int, stride: int, pad: int) -> Tensor:
    """Add up, for each position of one axis, the values whose windows contain it."""
    if kernel <= 64 * stride:
        shape = (kernel, 1) if axis == 2 else (1, kernel)
        steps, pads = ((stride, 1), (pad, 0)) if axis == 2 else ((1, stride), (0, pad))
        ones = x.new_ones(x.shape[1], 1, *shape)
        return F.conv_transpose2d(x, ones, stride=steps, padding=pads, groups=x.shape[1])
    # So many windows overlap that differences of a running sum are faster; they need double precision.
    lines = x.movedim(axis, -1).double()
    start = torch.arange(lines.shape[-1], device=x.device) * stride
    size = (lines.shape[-1] - 1) * stride + kernel
    changes = lines.new_zeros(*lines.shape[:-1], size + 1)
    changes = changes.index_add(-1, start, lines).index_add(-1, start + kernel, -lines)
    return changes.cumsum(-1)[..., pad : size - pad].movedim(-1, axis).to(x.dtype)


def unpool(
    x: Tensor, method: str, kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int]
) -> Tensor:
    """Place (FIXED), spread (DIV) or repeat (REP) each value in its window; overlapping windows are averaged."""
    size = [(n - 1) * s - 2 * p + k for n, s, p, k in zip(x.shape[2:], stride, pad, kernel, strict=True)]
    axes = [(x.shape[2 + i], size[i], kernel[i], stride[i], pad[i]) for i in (0, 1)]
    if method == "FIXED":
        (rows, has_row), (columns, has_column) = [[t.to(x.device) for t in centers(*axis)] for axis in axes]
        placed = x.index_select(2, rows).index_select(3, columns)
        return torch.where(has_row[:, None] & has_column, placed, 0)
    (tall, deep), (wide, broad) = [[t.to(x) for t in covered(*axis)] for axis in axes]
    if method == "DIV":
        x = x / (tall[:, None] * wide)
    total = x
    for axis in (0, 1):
        total = window_sums(total, 2 + axis, kernel[axis], stride[axis], pad[axis])
    count = deep[:, None] * broad
    return torch.where(count > 0, total / count.clamp(min=1), 0)


uses(unpool, centers, covered, window_sums)

# ---------------------------------------------------------------------- layers


@register_layer("UnPooling")
class UnPooling(Layer):
    """Each value in the middle of its window (FIXED), divided over it (DIV) or repeated in it (REP).

    Where windows overlap the sum is divided by their number.  The size is (n - 1) · `out_stride` - 2 · `out_pad` +
    `out_kernel`; with a second bottom kernel, stride and pad follow from its size.  Source: Cambricon/caffe,
    unpooling_layer.cpp.
    """

    message = "unpooling_param"
    fields = (
        "unpool",
        *("out_kernel_size", "out_kernel_h", "out_kernel_w"),
        *("out_stride", "out_stride_h", "out_stride_w"),
        *("out_pad", "out_pad_h", "out_pad_w"),
    )
    bottom_count = (1, 2)

    def setup(self, x: int, *like: int) -> None:
        self.method: str = self.param.UnPoolMethod.Name(self.param.unpool)
        self.stated = (
            None
            if like
            else (
                self._pair("out_kernel_size", "out_kernel", 1),
                self._pair("out_stride", "out_stride", 1),
                self._pair("out_pad", "out_pad", 0),
            )
        )

    def _pair(self, field: str, stem: str, least: int) -> Pair:
        """Return one value for both axes, or one per axis."""
        stated = [self.param.HasField(f"{stem}_{axis}") for axis in "hw"]
        if any(stated) and self.param.HasField(field):
            raise self.error(f"states both {field} and {stem}_h/{stem}_w; state one kind")
        if any(stated) != all(stated):
            raise self.error(f"states only one of {stem}_h and {stem}_w; state both")
        if not any(stated) and field == "out_kernel_size" and not self.param.HasField(field):
            raise self.error("out_kernel_size is missing; state it, or out_kernel_h and out_kernel_w")
        names = [f"{stem}_h", f"{stem}_w"] if all(stated) else [field] * 2
        pair = (getattr(self.param, names[0]), getattr(self.param, names[1]))
        if min(pair) < least:
            raise self.error(f"{field} {list(pair)} must be at least {least}")
        return pair

    def _geometry(self, size: Pair, like: Pair | None) -> tuple[Pair, Pair, Pair]:
        """Return kernel, stride and pad."""
        if self.stated:
            return self.stated
        axes = []
        for n, m in zip(size, like or size, strict=True):
            kernel = -(-m // n)
            stride = 1 if kernel == m else kernel
            axes.append((kernel, stride, ((n - 1) * stride + kernel - m) // 2))
        rows, columns = axes
        return (rows[0], columns[0]), (rows[1], columns[1]), (rows[2], columns[2])

    def _size(self, size: Pair, like: Pair | None) -> Pair:
        geometry = self._geometry(size, like)
        height, width = ((n - 1) * s - 2 * p + k for n, k, s, p in zip(size, *geometry, strict=True))
        return height, width

    def plan(self, x: Shape, *like: Shape) -> LayerPlan:
        for bottom in (x, *like):
            if len(bottom) != 4:
                raise self.error(f"bottom {list(bottom)} must be N×C×H×W")
        planes = [(bottom[2], bottom[3]) for bottom in (x, *like)]
        kernel, _, pad = self._geometry(planes[0], planes[1] if like else None)
        if any(p >= k for p, k in zip(pad, kernel, strict=True)):
            raise self.error(f"out_pad {list(pad)} must be smaller than the kernel {list(kernel)}")
        size = self._size(planes[0], planes[1] if like else None)
        if min(size) < 1:
            raise self.error(f"out_pad {list(pad)} leaves nothing of bottom {list(x)}")
        return LayerPlan([(*x[:2], *size)])

    def forward(self, x: Tensor, *like: Tensor) -> tuple[Tensor]:
        size, other = (x.shape[2], x.shape[3]), (like[0].shape[2], like[0].shape[3]) if like else None
        return (unpool(x, self.method, *self._geometry(size, other)),)

    def onnx(self, graph: OnnxGraph, x: str, *like: str) -> list[str]:
        channels, *sides = (graph.size(x, axis) for axis in (1, 2, 3))
        other = (graph.size(like[0], 2), graph.size(like[0], 3)) if like else None
        plane = (sides[0], sides[1])
        kernel, stride, pad = self._geometry(plane, other)
        axes = list(zip(plane, self._size(plane, other), kernel, stride, pad, strict=True))
        if self.method == "FIXED":
            rows, columns = (centers(*axis) for axis in axes)
            for axis, (index, _) in enumerate((rows, columns), 2):
                x = graph.node("Gather", [x, graph.constant(index.numpy())], axis=axis)
            has_value = graph.constant((rows[1][:, None] & columns[1]).numpy())
            return [graph.node("Where", [has_value, x, graph.constant(numbers(0))])]
        (tall, deep), (wide, broad) = (covered(*axis) for axis in axes)
        if self.method == "DIV":
            x = graph.node("Div", [x, graph.constant(numbers(tall[:, None] * wide))])
        ones = graph.constant(numbers(torch.ones(channels, 1, *kernel)))
        total = graph.node(
            "ConvTranspose", [x, ones], kernel_shape=kernel, strides=stride, pads=pad * 2, group=channels
        )
        return [graph.node("Div", [total, graph.constant(numbers((deep[:, None] * broad).clamp(min=1)))])]

    def source(self, code: SourceCode, x: str, *like: str) -> list[str]:
        planes = [(code.shape(index)[2], code.shape(index)[3]) for index in range(1 + len(like))]
        kernel, stride, pad = self._geometry(planes[0], planes[1] if like else None)
        return [f'{code.helper(unpool)}({x}, "{self.method}", {kernel}, {stride}, {pad})']


@register_layer("Flip")
class Flip(Layer):
    """Columns (`flip_width`, the default) and rows (`flip_height`) in reverse order.

    Source: happynear/caffe-windows, flip_layer.cpp.
    """

    message = "flip_param"
    fields = ("flip_width", "flip_height")

    def setup(self, rank: int) -> None:
        if rank != 4:
            raise self.error(f"its bottom has {rank} axes; it takes 4 (N, C, H, W)")
        chosen = ((2, self.param.flip_height), (3, self.param.flip_width))
        self.axes = tuple(axis for axis, flips in chosen if flips)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x.flip(self.axes),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        count = len(self.axes)
        if not count:
            return [graph.node("Identity", [x])]
        back = graph.constant(integers(*[-1] * count))
        ends = graph.constant(integers(*[-(2**63)] * count))
        return [graph.node("Slice", [x, back, ends, graph.constant(integers(*self.axes)), back])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"{x}.flip({self.axes})"]
