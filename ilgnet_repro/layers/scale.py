"""Scale and Bias: multiplies by or adds a smaller blob that broadcasts over some axes of the bottom."""

from __future__ import annotations

import math
from math import prod

import torch
from torch import Tensor

from ..schema import caffe_pb2 as pb
from .support.base import (
    ANY_LAYOUT,
    BlobSpec,
    Layer,
    LayerPlan,
    OnnxGraph,
    Shape,
    SourceCode,
    integers,
    literal,
    numbers,
)
from .support.registry import register_layer


def limited(factors: Tensor, least: float, most: float) -> Tensor:
    """Return the factors within limits; the gradient passes as if there were none."""
    return factors.detach().clamp(least, most) + (factors - factors.detach())


class Broadcast(Layer):
    """Shared by Scale and Bias: the axes of the smaller blob, which is learned or the second bottom."""

    in_place = True
    bottom_count = (1, 2)
    is_limited = False  # whether its values are used within limits

    def setup(self, x: int, *given: int) -> None:
        self.is_learned = not given
        count: int = given[0] if given else self.param.num_axes
        # A second bottom that is a scalar broadcasts over every axis.
        self.start = 0 if given == (0,) else self.axis(self.param.axis, x)
        if count < -1:
            raise self.error(f"num_axes {count} must be at least 0, or -1 for all from axis on")
        self.end = x if count == -1 else self.start + count
        if self.is_learned and self.end > x:
            raise self.error(f"axis {self.start} and num_axes {count} exceed {x} axes")
        # Broadcasting aligns the last axes, so the blob needs ones for those after it; a scalar needs none.
        self.trailing_axes = x - self.end if count else 0

    def _blob_shape(self, x: Shape, *given: Shape) -> Shape:
        """Return the shape of the learned blobs, which a second bottom must have."""
        shape = x[self.start : self.end]
        for second in given:
            if second != shape:
                raise self.error(
                    f"the second bottom {list(second)} does not match {list(x)} from axis {self.start} on"
                )
        return shape

    def scales_channels(self, shape: Shape) -> bool:
        """Whether its learned blobs have one value per channel of such a bottom."""
        return self.is_learned and (self.start, self.end) == (1, 2) and len(shape) > 1

    def _aligned(self, values: Tensor) -> Tensor:
        return values[(..., *(None,) * self.trailing_axes)]

    def _learned(self, name: str) -> Tensor:
        return self._aligned(self.blob(name))

    def _values_onnx(self, graph: OnnxGraph, name: str, *given: str) -> str:
        if not given:
            return graph.constant(numbers(self._learned(name)))
        if not self.trailing_axes:
            return given[0]
        first = self.end - self.start
        axes = range(first, first + self.trailing_axes)
        return graph.node("Unsqueeze", [*given, graph.constant(integers(*axes))])

    def _values_source(self, code: SourceCode, name: str, *given: str) -> str:
        if not given:
            return code.parameter(name, self._learned(name))
        if not self.trailing_axes:
            return given[0]
        return f"{given[0]}[{', '.join([':'] * (self.end - self.start) + ['None'] * self.trailing_axes)}]"


@register_layer("Scale")
class Scale(Broadcast):
    """x · weight (+ bias): both learned, or the factors from a second bottom.

    Of happynear's Caffe (scale_layer.cpp): factors under ``min_value`` or over ``max_value`` are moved to it, and stored so
    in training; their gradient is that of the factor itself.
    """

    message = "scale_param"
    layout = ANY_LAYOUT
    fields = ("axis", "num_axes", "filler", "bias_term", "bias_filler", "min_value", "max_value")
    no_float16 = ""

    def setup(self, x: int, *given: int) -> None:
        super().setup(x, *given)
        p = self.param
        self.least = float(p.min_value) if p.HasField("min_value") else -math.inf
        self.most = float(p.max_value) if p.HasField("max_value") else math.inf
        self.is_limited = (self.least, self.most) != (-math.inf, math.inf)
        if not self.least <= self.most:
            raise self.error(f"min_value {self.least:g} must not exceed max_value {self.most:g}")

    def plan(self, x: Shape, *given: Shape) -> LayerPlan:
        shape = self._blob_shape(x, *given)
        one = pb.FillerParameter(type="constant", value=1)
        filler = self.param.filler if self.param.HasField("filler") else one
        blobs = [BlobSpec("weight", shape, filler)] if self.is_learned else []
        if self.param.bias_term:
            blobs.append(BlobSpec("bias", shape, self.param.bias_filler))
        return LayerPlan([x], blobs, prod(x) if self.is_learned else 0)

    def scales_channels(self, shape: Shape) -> bool:
        return super().scales_channels(shape) and not self.is_limited

    def is_channel_affine(self, rank: int) -> bool:
        return rank == 4 and self.is_learned and (self.start, self.end) == (1, 2) and not self.is_limited

    def channel_affine(self, training: bool) -> tuple[Tensor, Tensor] | None:
        weight = self.blob("weight")
        return weight, self.blob("bias") if self.param.bias_term else torch.zeros_like(weight)

    def forward(self, x: Tensor, *given: Tensor) -> tuple[Tensor]:
        y = x * self._factors(*given, stores=self.training)
        return (y + self._learned("bias") if self.param.bias_term else y,)

    def _factors(self, *given: Tensor, stores: bool) -> Tensor:
        factors = self._aligned(*given) if given else self._learned("weight")
        if not self.is_limited:
            return factors
        if not given and stores and not torch.compiler.is_exporting():
            with torch.no_grad():
                self.blob("weight").clamp_(self.least, self.most)
        return limited(factors, self.least, self.most)

    def onnx(self, graph: OnnxGraph, x: str, *given: str) -> list[str]:
        factors = self._values_onnx(graph, "weight", *given)
        if self.is_limited:
            factors = graph.node("Max", [factors, graph.constant(numbers(self.least))])
            factors = graph.node("Min", [factors, graph.constant(numbers(self.most))])
        y = graph.node("Mul", [x, factors])
        return [graph.node("Add", [y, self._values_onnx(graph, "bias")]) if self.param.bias_term else y]

    def source(self, code: SourceCode, x: str, *given: str) -> list[str]:
        bias = f" + {self._values_source(code, 'bias')}" if self.param.bias_term else ""
        factors = self._values_source(code, "weight", *given)
        if self.is_limited:
            factors = f"{code.helper(limited)}({factors}, {literal(self.least)}, {literal(self.most)})"
        return [f"{x} * {factors}{bias}"]


@register_layer("Bias")
class Bias(Broadcast):
    """x + bias: learned, or from a second bottom."""

    message = "bias_param"
    layout = ANY_LAYOUT
    fields = ("axis", "num_axes", "filler")
    no_float16 = ""

    def plan(self, x: Shape, *given: Shape) -> LayerPlan:
        shape = self._blob_shape(x, *given)
        return LayerPlan([x], [BlobSpec("bias", shape, self.param.filler)] if self.is_learned else [])

    def forward(self, x: Tensor, *given: Tensor) -> tuple[Tensor]:
        return (x + (self._aligned(*given) if given else self._learned("bias")),)

    def onnx(self, graph: OnnxGraph, x: str, *given: str) -> list[str]:
        return [graph.node("Add", [x, self._values_onnx(graph, "bias", *given)])]

    def source(self, code: SourceCode, x: str, *given: str) -> list[str]:
        return [f"{x} + {self._values_source(code, 'bias', *given)}"]
