"""Reverse and ReverseTime: axes or sequences back to front, for the second direction of a recurrent net."""

from __future__ import annotations

import torch
from torch import Tensor

from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers, numbers
from .support.labels import to_indices
from .support.registry import register_layer

_INT64_MIN = -(2**63)


def reverse_time(x: Tensor, lengths: Tensor, copy_remaining: bool) -> Tensor:
    """Return T×N×… values with the first ``lengths[n]`` steps of each stream reversed; the rest is copied or 0."""
    steps = torch.arange(x.shape[0], device=x.device)[:, None]
    lengths = lengths.long()[None]
    inside = steps < lengths
    order = torch.where(inside, lengths - 1 - steps, steps)
    trailing = (1,) * (x.dim() - 2)
    top = x.gather(0, order.reshape(*order.shape, *trailing).expand_as(x))
    return top if copy_remaining else torch.where(inside.reshape(*inside.shape, *trailing), top, 0)


@register_layer("Reverse")
class Reverse(Layer):
    """The bottom with the order along `axis` reversed; 0 by default.

    Source: caffe_ocr and CTPN, src/caffe/layers/reverse_layer.cpp; synopsys-caffe takes several axes.
    """

    message = "reverse_param"
    fields = ("axis",)

    def setup(self, rank: int) -> None:
        self.axes = sorted(self.axis(axis, rank) for axis in list(self.param.axis) or [0])
        if len(set(self.axes)) < len(self.axes):
            raise self.error(f"axis {list(self.param.axis)} names an axis twice")

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x.flip(self.axes),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        count = len(self.axes)
        backwards = ([-1] * count, [_INT64_MIN] * count, self.axes, [-1] * count)
        return [graph.node("Slice", [x, *(graph.constant(integers(*values)) for values in backwards)])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"{x}.flip({self.axes})"]


@register_layer("ReverseTime")
class ReverseTime(Layer):
    """The first lengths[n] steps of stream n of T×N×… values reversed; the rest is 0, or kept with `copy_remaining`.

    Source: caffe_ocr, src/caffe/layers/reverse_time_layer.cpp.
    """

    message = "reverse_time_param"
    fields = ("copy_remaining",)
    bottom_count = (2, 2)
    index_bottoms = (1,)

    def setup(self, *ranks: int) -> None:
        self.copy_remaining: bool = self.param.copy_remaining

    def plan(self, x: Shape, lengths: Shape) -> LayerPlan:
        if len(x) < 2 or lengths != x[1:2]:
            raise self.error(
                f"needs values time × stream and one length per stream, not {list(x)} and {list(lengths)}"
            )
        return LayerPlan([x])

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor]:
        lengths = to_indices(self, lengths.detach(), x.shape[0] + 1, "a sequence's length")
        return (reverse_time(x, lengths, self.copy_remaining),)

    def onnx(self, graph: OnnxGraph, x: str, lengths: str) -> list[str]:
        from onnx import TensorProto

        lengths = graph.node("Cast", [lengths], to=TensorProto.INT64)
        top = graph.node("ReverseSequence", [x, lengths], time_axis=0, batch_axis=1)
        if self.copy_remaining:
            return [top]
        count = graph.node("Squeeze", [graph.node("Shape", [x], start=0, end=1)])
        zero, one = (graph.constant(integers(value).reshape(())) for value in (0, 1))
        steps = graph.node(
            "Unsqueeze", [graph.node("Range", [zero, count, one]), graph.constant(integers(1))]
        )
        inside = graph.node("Less", [steps, lengths])
        trailing = range(2, len(graph.shape(x)))
        if trailing:
            inside = graph.node("Unsqueeze", [inside, graph.constant(integers(*trailing))])
        return [graph.node("Where", [inside, top, graph.constant(numbers(0))])]

    def source(self, code: SourceCode, x: str, lengths: str) -> list[str]:
        return [f"{code.helper(reverse_time)}({x}, {lengths}, {self.copy_remaining})"]
