"""Lengths of vectors: NormL2 and L2Norm (per image), ChannelNorm (per position); ChannelScale, a factor per position."""

from __future__ import annotations

from math import prod

from torch import Tensor

from .normalize import l2_normalize
from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers, literal, numbers
from .support.registry import register_layer
from .support.shapes import four_axes_index, legacy_shape, onnx_with_four_axes, with_four_axes

# ---------------------------------------------------------------------- torch, also for written source


def floored_l2_normalize(x: Tensor, least: float) -> Tensor:
    """Return each image over its length, whose square is at least ``least``.

    As in the fork, the gradient is (dy - y (y·dy)) / length, also where the length is the least.
    """
    axes = list(range(1, x.dim()))
    fixed = x.detach()
    inverse = fixed.square().sum(axes, keepdim=True).clamp(min=least).rsqrt()
    top = fixed * inverse
    along = (top * (x - fixed)).sum(axes, keepdim=True)
    return top + inverse * ((x - fixed) - top * along)


def channel_norm(x: Tensor) -> Tensor:
    """Return the length over the channels; the fork's gradient divides by it plus 1e-9, so that it is 0 for zeros."""
    fixed = x.detach()
    length = fixed.square().sum(1, keepdim=True).sqrt()
    return length + (fixed / (length + 1e-9) * (x - fixed)).sum(1, keepdim=True)


def channel_scale(x: Tensor, scale: Tensor, forward: bool, to_x: bool, to_scale: bool) -> Tensor:
    """Return x times one factor per position; each of the three products may be left out, as in the fork."""
    factor = scale.reshape(x.shape[0], 1, *x.shape[2:])
    value = x.detach() * factor.detach() if forward else x.detach()
    path = (x - x.detach()) * (factor.detach() if to_x else 1)
    return value + path + (x.detach() * (factor - factor.detach()) if to_scale else 0)


# ---------------------------------------------------------------------- layers


class _UnitLength(Layer):
    """Each image over its length; the top has four axes."""

    def setup(self, rank: int) -> None:
        self.rank = rank

    def plan(self, x: Shape) -> LayerPlan:
        if not 1 <= len(x) <= 4:
            raise self.error(f"bottom {list(x)} has {len(x)} axes; it takes 1 to 4")
        return LayerPlan([legacy_shape(x)])

    def _squares_onnx(self, graph: OnnxGraph, x: str) -> str:
        if self.rank == 1:
            return graph.node("Mul", [x, x])
        axes = graph.constant(integers(*range(1, self.rank)))
        return graph.node("ReduceSumSquare", [x, axes], keepdims=1)

    def _over_onnx(self, graph: OnnxGraph, x: str, squares: str) -> list[str]:
        top = graph.node("Div", [x, graph.node("Sqrt", [squares])])
        return [onnx_with_four_axes(graph, top, self.rank)]


@register_layer("NormL2")
class NormL2(_UnitLength):
    """Each image over sqrt(sum of squares + 1e-7).

    Source: xialuxi/arcface-caffe, AdaCos/normL2_layer.cpp.
    """

    eps = 1e-7

    def forward(self, x: Tensor) -> tuple[Tensor]:
        # For one axis the sum is over none: torch takes an empty list of axes as all.
        wide = x if self.rank > 1 else x[:, None]
        top = l2_normalize(wide, list(range(1, wide.dim())), self.eps).view_as(x)
        return (with_four_axes(top),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        squares = graph.node("Add", [self._squares_onnx(graph, x), graph.constant(numbers(self.eps))])
        return self._over_onnx(graph, x, squares)

    def source(self, code: SourceCode, x: str) -> list[str]:
        wide = x if self.rank > 1 else f"{x}[:, None]"
        axes = list(range(1, max(self.rank, 2)))
        index = four_axes_index(self.rank) if self.rank > 1 else "[..., None, None]"
        return [f"{code.helper(l2_normalize)}({wide}, {axes}, {literal(self.eps)}){index}"]


@register_layer("L2Norm")
class L2Norm(_UnitLength):
    """Each image over its length, whose square is at least 1e-12.

    Source: yuminsuh/caffe_retrieval, l2_norm_layer.cpp.
    """

    least = 1e-12
    no_float16 = "sums of squares"

    def forward(self, x: Tensor) -> tuple[Tensor]:
        wide = x if self.rank > 1 else x[:, None]
        return (with_four_axes(floored_l2_normalize(wide, self.least).view_as(x)),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        least = graph.constant(numbers(self.least))
        return self._over_onnx(graph, x, graph.node("Max", [self._squares_onnx(graph, x), least]))

    def source(self, code: SourceCode, x: str) -> list[str]:
        wide = x if self.rank > 1 else f"{x}[:, None]"
        index = four_axes_index(self.rank) if self.rank > 1 else "[..., None, None]"
        return [f"{code.helper(floored_l2_normalize)}({wide}, {literal(self.least)}){index}"]


@register_layer("ChannelNorm")
class ChannelNorm(Layer):
    """The Euclidean length over the channels at each position: num x 1 x height x width.

    Source: lmb-freiburg/flownet2, channel_norm_layer.cpp.
    """

    def setup(self, rank: int) -> None:
        self.rank = rank

    def plan(self, x: Shape) -> LayerPlan:
        if not 2 <= len(x) <= 4:
            raise self.error(f"bottom {list(x)} has {len(x)} axes; it takes 2 to 4")
        return LayerPlan([legacy_shape((x[0], 1, *x[2:]))])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (with_four_axes(channel_norm(x)),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        length = graph.node("ReduceL2", [x, graph.constant(integers(1))], keepdims=1)
        return [onnx_with_four_axes(graph, length, self.rank)]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"{code.helper(channel_norm)}({x}){four_axes_index(self.rank)}"]


@register_layer("ChannelScale")
class ChannelScale(Layer):
    """The first bottom times the second, which has one value per image and position.

    ``do_forward``, ``do_backward_feature`` and ``do_backward_scale`` leave out the product of the forward pass and of
    each gradient.  ``global_scale``, a running scale that the fork's CPU and GPU code compute differently, is refused.
    Source: happynear/caffe-windows, channel_scale_layer.cpp.
    """

    message = "channel_scale_param"
    fields = ("do_forward", "do_backward_feature", "do_backward_scale")
    ignored_fields = (
        "max_global_scale",
        "min_global_scale",
        "init_global_scale",
    )  # read with global_scale only
    bottom_count = (2, 2)

    def setup(self, *ranks: int) -> None:
        p = self.param
        self.flags: tuple[bool, bool, bool] = (p.do_forward, p.do_backward_feature, p.do_backward_scale)

    def plan(self, x: Shape, scale: Shape) -> LayerPlan:
        if len(x) < 2 or x[:1] != scale[:1] or prod(scale) * x[1] != prod(x):
            raise self.error(f"needs one factor for each image and position of {list(x)}, not {list(scale)}")
        return LayerPlan([x])

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor]:
        return (channel_scale(x, scale, *self.flags),)

    def onnx(self, graph: OnnxGraph, x: str, scale: str) -> list[str]:
        if not self.flags[0]:
            return [x]
        if len(graph.shape(scale)) != len(graph.shape(x)) or graph.shape(scale)[1] != 1:
            shape = [graph.node("Shape", [x], start=0, end=1), graph.constant(integers(1))]
            if len(graph.shape(x)) > 2:
                shape.append(graph.node("Shape", [x], start=2, end=len(graph.shape(x))))
            scale = graph.node("Reshape", [scale, graph.node("Concat", shape, axis=0)])
        return [graph.node("Mul", [x, scale])]

    def source(self, code: SourceCode, x: str, scale: str) -> list[str]:
        return [f"{code.helper(channel_scale)}({x}, {scale}, {', '.join(map(str, self.flags))})"]
