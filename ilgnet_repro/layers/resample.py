"""Resampling of images with each fork's own rule: Resample, Downsample, Accum (FlowNet), Resize, DeephiResize."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers, numbers, uses
from .support.registry import register_layer
from .support.taps import Taps, apply_taps, taps_onnx

# ---------------------------------------------------------------------- torch, also for written source


def filter_taps(size: int, count: int, other: float, cubic: bool, antialias: bool) -> tuple[Tensor, Tensor]:
    """Return the taps of FlowNet's triangle or cubic filter for one axis; ``other`` is the other axis's ratio."""
    ratio = torch.tensor(size / count)
    center = torch.arange(count) * ratio + torch.tensor(other) / 2 - 0.5
    nearest = torch.sign(center) * torch.floor(center.abs() + 0.5)
    scale = 1 / ratio if antialias else torch.tensor(1.0)
    reach = 2 if ratio < 1 else int(torch.ceil((4 if cubic else 2) / scale))
    place = nearest[:, None] + torch.arange(-reach, reach + 1)
    d = (scale * (center[:, None] - place)).abs()
    if cubic:
        near, far = d * d * (1.5 * d - 2.5) + 1, d * (d * (-0.5 * d + 2.5) - 4) + 2
        weight = torch.where(d <= 1, near, torch.where(d < 2, far, 0.0))
    else:
        weight = (1 - d).clamp(min=0)
    weight = torch.where((place >= 0) & (place < size), weight, 0.0)
    total = weight.sum(1, keepdim=True)
    return place.clamp(0, size - 1).long(), torch.where(total != 0, weight / total, 0.0)


def nearest_taps(size: int, count: int, other: float) -> tuple[Tensor, Tensor]:
    """Return FlowNet's nearest value for one axis; a position may be outside."""
    center = torch.arange(count) * torch.tensor(size / count) + torch.tensor(other) / 2 - 0.5
    place = torch.sign(center) * torch.floor(center.abs() + 0.5)
    return place.long()[:, None], torch.ones(count, 1)


def resample(x: Tensor, size: tuple[int, int], kind: str, antialias: bool) -> Tensor:
    """Resize by FlowNet's Resample; each axis is shifted by the other's ratio, as in its source."""
    ratios = [x.shape[2 + axis] / size[axis] for axis in (0, 1)]
    antialias = antialias and max(ratios) > 1
    # The axis that grows less comes first, so that fewer values are resized along the other.
    for axis in (1, 0) if kind != "NEAREST" and ratios[0] < ratios[1] else (0, 1):
        n, m, other = x.shape[2 + axis], size[axis], ratios[1 - axis]
        if kind == "NEAREST":
            x = apply_taps(x, 2 + axis, nearest_taps(n, m, other))
        else:
            x = apply_taps(x, 2 + axis, filter_taps(n, m, other, kind == "CUBIC", antialias))
    return x


def downsample_taps(size: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the values within one step of a position, corners aligned, weighted by their distance."""
    step = torch.tensor((size - 1) / (count - 1))
    center = torch.arange(count) / (count - 1) * (size - 1)
    reach = int(torch.ceil(step))
    place = torch.floor(center + 0.5)[:, None] + torch.arange(-reach, reach + 1)
    weight = (1 - (place - center[:, None]).abs() / step).clamp(min=0)
    return place.clamp(0, size - 1).long(), torch.where((place >= 0) & (place < size), weight, 0.0)


def downsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Average with FlowNet's Downsample: NaN is left out, and gives NaN where it outweighs half of the rest."""
    if x.shape[2:] == size:
        return x
    lost = x.isnan()
    parts = [torch.where(lost, 0, x), (~lost).to(x), lost.to(x)]
    for axis in (0, 1):
        taps = downsample_taps(x.shape[2 + axis], size[axis])
        parts = [apply_taps(part, 2 + axis, taps) for part in parts]
    total, weight, missing = parts
    return torch.where(missing / weight > 0.5, torch.nan, total / weight)


def corner_taps(size: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the two neighbors of i · size / count; one outside counts as 0."""
    place = torch.arange(count) * torch.tensor(size / count)
    low = place.floor().clamp(max=size - 1)
    part = place - low
    index = torch.stack([low, (low + 1).clamp(max=size - 1)], 1).long()
    return index, torch.stack([1 - part, torch.where(low + 1 < size, part, 0.0)], 1)


def resize_from_corner(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly from the top left corner, without half a pixel."""
    for axis in (0, 1):
        x = apply_taps(x, 2 + axis, corner_taps(x.shape[2 + axis], size[axis]))
    return x


def nearest_below(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Take the value at floor(i · size / count) of each axis, as OpenCV's INTER_NEAREST."""
    for axis in (0, 1):
        n, m = x.shape[2 + axis], size[axis]
        place = (torch.arange(m, dtype=torch.float64) * (1 / (m / n))).floor().clamp(max=n - 1).long()
        x = x.index_select(2 + axis, place.to(x.device))
    return x


uses(resample, apply_taps, filter_taps, nearest_taps)
uses(downsample, apply_taps, downsample_taps)
uses(resize_from_corner, apply_taps, corner_taps)

# ---------------------------------------------------------------------- layers


class _Resized(Layer):
    """N×C×H×W resized to a stated size, or to that of the last bottom."""

    bottom_count: ClassVar[tuple[int, int | None]] = (1, 2)

    def check(self, *bottoms: Shape) -> None:
        """Raise LayerError unless every bottom is N×C×H×W."""
        for bottom in bottoms:
            if len(bottom) != 4:
                raise self.error(f"bottom {list(bottom)} must be N×C×H×W")

    def stated(self, height: str, width: str) -> tuple[int, int]:
        """Return the size that two fields state."""
        size = (getattr(self.param, height), getattr(self.param, width))
        if min(size) < 1:
            raise self.error(f"{height} {size[0]} and {width} {size[1]} must both be stated and over 0")
        return size

    @staticmethod
    def fixed(graph: OnnxGraph, *bottoms: str) -> list[tuple[int, int]]:
        """Return the bottoms' heights and widths; raises LayerError where one is dynamic."""
        return [(graph.size(x, 2), graph.size(x, 3)) for x in bottoms]


def _rows_and_columns(graph: OnnxGraph, x: str, taps: Sequence[Taps]) -> str:
    for axis, of_axis in enumerate(taps, 2):
        x = taps_onnx(graph, x, axis, 4, of_axis)
    return x


@register_layer("Resample")
class Resample(_Resized):
    """Nearest, triangle or cubic resampling to `height`×`width`, or to the second bottom's size; no gradient.

    Position i of the top is i·f + g/2 - 1/2 of the bottom, with f the axis's own ratio and g that of the other, as in
    the source.  Weights are normalized; with `antialias` the filter widens where the image shrinks.  Source:
    lmb-freiburg/flownet2, resample_layer.cu.
    """

    message = "resample_param"
    fields = ("width", "height", "type", "antialias")
    has_gradient = False

    def setup(self, x: int, *like: int) -> None:
        self.kind: str = self.param.ResampleType.Name(self.param.type)
        if self.kind == "AREA":
            raise self.error("type AREA is not supported; use NEAREST, LINEAR or CUBIC")
        self.antialias: bool = self.param.antialias
        self.size = None if like else self.stated("height", "width")

    def plan(self, x: Shape, *like: Shape) -> LayerPlan:
        self.check(x, *like)
        size = self.size or (like[0][2], like[0][3])
        if self.kind == "NEAREST":
            for axis in (0, 1):
                index = nearest_taps(x[2 + axis], size[axis], x[3 - axis] / size[1 - axis])[0]
                if index.min() < 0 or index.max() >= x[2 + axis]:
                    raise self.error(
                        f"NEAREST from {list(x[2:])} to {list(size)} reads outside the image; the two ratios must be alike"
                    )
        return LayerPlan([(*x[:2], *size)])

    def forward(self, x: Tensor, *like: Tensor) -> tuple[Tensor]:
        size = self.size or (like[0].shape[2], like[0].shape[3])
        return (resample(x.detach(), size, self.kind, self.antialias),)

    def onnx(self, graph: OnnxGraph, x: str, *like: str) -> list[str]:
        source, *others = self.fixed(graph, x, *like)
        size = self.size or others[0]
        ratios = [n / m for n, m in zip(source, size, strict=True)]
        antialias = self.antialias and max(ratios) > 1
        taps = [
            nearest_taps(source[axis], size[axis], ratios[1 - axis])
            if self.kind == "NEAREST"
            else filter_taps(source[axis], size[axis], ratios[1 - axis], self.kind == "CUBIC", antialias)
            for axis in (0, 1)
        ]
        return [_rows_and_columns(graph, x, taps)]

    def source(self, code: SourceCode, x: str, *like: str) -> list[str]:
        size = str(self.size) if self.size else f"tuple({like[0]}.shape[2:])"
        return [f'{code.helper(resample)}({x}, {size}, "{self.kind}", {self.antialias})']


@register_layer("Downsample")
class Downsample(_Resized):
    """Weighted average of the values around each position, corners aligned; NaN is left out; no gradient.

    The size is `top_height`×`top_width` or the second bottom's.  Source: lmb-freiburg/flownet2, downsample_layer.cu.
    """

    message = "downsample_param"
    fields = ("top_height", "top_width")
    has_gradient = False

    def setup(self, x: int, *like: int) -> None:
        self.size = None if like else self.stated("top_height", "top_width")

    def plan(self, x: Shape, *like: Shape) -> LayerPlan:
        self.check(x, *like)
        size = self.size or (like[0][2], like[0][3])
        if x[2:] != size and min(*x[2:], *size) < 2:
            raise self.error(
                f"sides of 1, from {list(x[2:])} to {list(size)}, divide by zero; use sides of at least 2"
            )
        return LayerPlan([(*x[:2], *size)])

    def forward(self, x: Tensor, *like: Tensor) -> tuple[Tensor]:
        size = self.size or (like[0].shape[2], like[0].shape[3])
        return (downsample(x.detach(), size),)

    def onnx(self, graph: OnnxGraph, x: str, *like: str) -> list[str]:
        from onnx import TensorProto

        source, *others = self.fixed(graph, x, *like)
        size = self.size or others[0]
        if source == size:
            return [graph.node("Identity", [x])]
        taps = [downsample_taps(n, m) for n, m in zip(source, size, strict=True)]
        zero, half, nan = (graph.constant(numbers(value)) for value in (0, 0.5, np.nan))
        lost = graph.node("IsNaN", [x])
        missing = graph.node("Cast", [lost], to=TensorProto.FLOAT)
        valid = graph.node("Sub", [graph.constant(numbers(1)), missing])
        total, weight, absent = (
            _rows_and_columns(graph, part, taps)
            for part in (graph.node("Where", [lost, zero, x]), valid, missing)
        )
        is_lost = graph.node("Greater", [graph.node("Div", [absent, weight]), half])
        return [graph.node("Where", [is_lost, nan, graph.node("Div", [total, weight])])]

    def source(self, code: SourceCode, x: str, *like: str) -> list[str]:
        size = str(self.size) if self.size else f"tuple({like[0]}.shape[2:])"
        return [f"{code.helper(downsample)}({x}, {size})"]


@register_layer("Accum")
class Accum(_Resized):
    """The bottoms, resized bilinearly to one size with corners aligned, concatenated along the channels.

    The size is the greatest height and width, `top_height`×`top_width` where both are greater, a multiple of
    `size_divisible_by`, or with `have_reference` that of the last bottom, which is not concatenated.  Source:
    lmb-freiburg/flownet2, accum_layer.cpp.
    """

    message = "accum_param"
    fields = ("top_height", "top_width", "size_divisible_by", "have_reference")
    bottom_count = (1, None)

    def setup(self, *ranks: int) -> None:
        self.has_reference: bool = self.param.have_reference
        if self.has_reference and len(ranks) < 2:
            raise self.error("have_reference needs at least two bottoms, the last one as the reference")
        self.multiple = self.param.size_divisible_by if self.param.HasField("size_divisible_by") else None
        if self.multiple == 0:
            raise self.error("size_divisible_by 0 must be at least 1")

    def _size(self, sides: Sequence[tuple[int, int]]) -> tuple[int, int]:
        if self.has_reference:
            return sides[-1]
        greatest = (max(side[0] for side in sides), max(side[1] for side in sides))
        stated = (self.param.top_height, self.param.top_width)
        if self.multiple is not None:
            stated = (
                -(-greatest[0] // self.multiple) * self.multiple,
                -(-greatest[1] // self.multiple) * self.multiple,
            )
        return stated if stated[0] > greatest[0] and stated[1] > greatest[1] else greatest

    def plan(self, *bottoms: Shape) -> LayerPlan:
        self.check(*bottoms)
        parts = bottoms[:-1] if self.has_reference else bottoms
        if any(part[0] != parts[0][0] for part in parts):
            raise self.error(f"bottoms {[list(part) for part in parts]} differ in their number of images")
        size = self._size([(bottom[2], bottom[3]) for bottom in bottoms])
        if min(size) < 2:
            raise self.error(f"a top of {list(size)} divides by zero; its sides must be at least 2")
        return LayerPlan([(parts[0][0], sum(part[1] for part in parts), *size)])

    def forward(self, *bottoms: Tensor) -> tuple[Tensor]:
        size = self._size([(bottom.shape[2], bottom.shape[3]) for bottom in bottoms])
        parts = bottoms[:-1] if self.has_reference else bottoms
        return (
            torch.cat([F.interpolate(x, size=size, mode="bilinear", align_corners=True) for x in parts], 1),
        )

    def onnx(self, graph: OnnxGraph, *bottoms: str) -> list[str]:
        size = graph.constant(integers(*self._size(self.fixed(graph, *bottoms))))
        parts = [
            graph.node(
                "Resize", [x, "", "", size], mode="linear", axes=[2, 3],
                coordinate_transformation_mode="align_corners",
            )
            for x in (bottoms[:-1] if self.has_reference else bottoms)
        ]  # fmt: skip
        return [graph.node("Concat", parts, axis=1)]

    def source(self, code: SourceCode, *bottoms: str) -> list[str]:
        shapes = [code.shape(index) for index in range(len(bottoms))]
        size = str(self._size([(shape[2], shape[3]) for shape in shapes]))
        if self.has_reference:
            size = f"{bottoms[-1]}.shape[2:]"
        parts = [
            f'F.interpolate({x}, size={size}, mode="bilinear", align_corners=True)'
            for x in (bottoms[:-1] if self.has_reference else bottoms)
        ]
        return [f"torch.cat([{', '.join(parts)}], 1)"]


@register_layer("Resize")
class Resize(_Resized):
    """Bilinear resizing from the top left corner: position i of the top is i · ratio of the bottom.

    The size is `height`×`width`, or with `is_pyramid_test` the bottom's times `out_height_scale` and
    `out_width_scale`, rounded down.  Source: happynear/caffe-windows, resize_layer.cpp.
    """

    message = "resize_param"
    fields = ("is_pyramid_test", "height", "width", "out_height_scale", "out_width_scale")
    bottom_count = (1, 1)

    def setup(self, rank: int) -> None:
        self.size = self.scales = None
        if not self.param.is_pyramid_test:
            self.size = self.stated("height", "width")
            return
        for field in ("out_height_scale", "out_width_scale"):
            if not self.param.HasField(field):
                raise self.error(f"is_pyramid_test needs {field}; state it")
        self.scales = (self.param.out_height_scale, self.param.out_width_scale)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        return self.size or _scaled((height, width), self.scales or (1, 1))

    def plan(self, x: Shape) -> LayerPlan:
        self.check(x)
        size = self._size(x[2], x[3])
        if min(size) < 1:
            raise self.error(f"scales {list(self.scales or ())} leave nothing of {list(x[2:])}")
        return LayerPlan([(*x[:2], *size)])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (resize_from_corner(x, self._size(x.shape[2], x.shape[3])),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        (source,) = self.fixed(graph, x)
        size = self._size(*source)
        return [_rows_and_columns(graph, x, [corner_taps(n, m) for n, m in zip(source, size, strict=True)])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        size = self._size(code.shape(0)[2], code.shape(0)[3])
        return [f"{code.helper(resize_from_corner)}({x}, {size})"]


def _scaled(sides: tuple[int, int], scales: tuple[float, float]) -> tuple[int, int]:
    """Return sides times float32 factors, rounded down, as C computes them."""
    with np.errstate(over="ignore"):  # an infinite size is refused by its caller
        height, width = (
            int(np.float32(side) * np.float32(scale)) for side, scale in zip(sides, scales, strict=True)
        )
    return height, width


@register_layer("DeephiResize")
class DeephiResize(_Resized):
    """OpenCV's resize, INTER_LINEAR or INTER_NEAREST, of each plane; no gradient.

    The size is `new_height`×`new_width`, or the bottom's times `scale_h` and `scale_w`, rounded down.  Source:
    deephi_resize_layer.cpp of Xilinx's fork.
    """

    message = "deephi_resize_param"
    fields = ("new_height", "new_width", "scale_h", "scale_w", "resize_type")
    bottom_count = (1, 1)
    has_gradient = False

    def setup(self, rank: int) -> None:
        stated = {field: self.param.HasField(field) for field in self.fields}
        for first, second in (("new_height", "new_width"), ("scale_h", "scale_w")):
            if stated[first] != stated[second]:
                raise self.error(f"states only one of {first} and {second}; state both")
        if not stated["new_height"] and not stated["scale_h"]:
            raise self.error("needs new_height and new_width, or scale_h and scale_w")
        self.is_linear: bool = self.param.resize_type == self.param.BILINEAR
        self.size = self.stated("new_height", "new_width") if stated["new_height"] else None
        self.scales = (self.param.scale_h, self.param.scale_w)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        return self.size or _scaled((height, width), self.scales)

    def plan(self, x: Shape) -> LayerPlan:
        self.check(x)
        size = self._size(x[2], x[3])
        if min(size) < 1:
            raise self.error(f"scales {list(self.scales)} leave nothing of {list(x[2:])}")
        return LayerPlan([(*x[:2], *size)])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x, size = x.detach(), self._size(x.shape[2], x.shape[3])
        if self.is_linear:
            return (F.interpolate(x, size=size, mode="bilinear"),)
        return (nearest_below(x, size),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        (source,) = self.fixed(graph, x)
        mode = {"mode": "linear"} if self.is_linear else {"mode": "nearest", "nearest_mode": "floor"}
        return [
            graph.node(
                "Resize", [x, "", "", graph.constant(integers(*self._size(*source)))], axes=[2, 3],
                coordinate_transformation_mode="half_pixel" if self.is_linear else "asymmetric", **mode,
            )
        ]  # fmt: skip

    def source(self, code: SourceCode, x: str) -> list[str]:
        size = self._size(code.shape(0)[2], code.shape(0)[3])
        if self.is_linear:
            return [f'F.interpolate({x}, size={size}, mode="bilinear")']
        return [f"{code.helper(nearest_below)}({x}, {size})"]
