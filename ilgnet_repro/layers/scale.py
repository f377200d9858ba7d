"""Scale and Bias: a blob of factors or terms laid over some axes of the bottom."""

from __future__ import annotations

from math import prod

from torch import Tensor

from ..schema import caffe_pb2 as pb
from .base import BlobSpec, Layer, OnnxGraph, Shape, SourceCode, integers, numbers
from .registry import register


class Overlay(Layer):
    """What Scale and Bias share: where the smaller blob, learned or the second bottom, lies."""

    in_place = True
    bottom_count = (1, 2)

    def top_shapes(self, bottoms: list[Shape]) -> list[Shape]:
        bottom = bottoms[0]
        rank = len(bottom)
        self.is_learned = len(bottoms) == 1
        if self.is_learned:
            start = self.axis(self.param.axis, rank)
            count: int = self.param.num_axes
            if count < -1:
                raise self.error(f"num_axes {count} must be at least 0, or -1 for all from axis on")
            end = rank if count == -1 else start + count
            if end > rank:
                raise self.error(f"axis {start} and num_axes {count} reach past {rank} axes")
            self.laid: Shape = bottom[start:end]
        else:
            # A second bottom brings its own number of axes; a single number goes with every axis.
            self.laid = bottoms[1]
            start = self.axis(self.param.axis, rank) if self.laid else 0
            end = start + len(self.laid)
            if self.laid != bottom[start:end]:
                raise self.error(
                    f"the second bottom {list(self.laid)} does not match {list(bottom)} from axis {start} on"
                )
        # Broadcasting lines axes up at the end, so the blob lacks those behind it.
        self.behind = rank - end
        return [bottom]

    def _spec(self, name: str, filler: pb.FillerParameter) -> BlobSpec:
        return BlobSpec(name, self.laid, filler)

    def _learned(self, name: str) -> Tensor:
        return self.blob(name).reshape(*self.laid, *(1,) * self.behind)

    def _given(self, bottom: Tensor) -> Tensor:
        return bottom[(..., *(None,) * self.behind)] if self.laid else bottom

    def _learned_onnx(self, graph: OnnxGraph, name: str) -> str:
        return graph.constant(numbers(self._learned(name)))

    def _given_onnx(self, graph: OnnxGraph, value: str) -> str:
        if not self.laid or not self.behind:
            return value
        first = len(self.laid)
        return graph.node("Unsqueeze", [value, graph.constant(integers(*range(first, first + self.behind)))])

    def _given_source(self, value: str) -> str:
        if not self.laid or not self.behind:
            return value
        return f"{value}[{', '.join([':'] * len(self.laid) + ['None'] * self.behind)}]"

    def _learned_source(self, code: SourceCode, name: str) -> str:
        return code.parameter(name, self._learned(name))


@register("Scale")
class Scale(Overlay):
    """x · weight (+ bias): both learned, or the factors from a second bottom."""

    message = "scale_param"
    fields = ("axis", "num_axes", "filler", "bias_term", "bias_filler")

    def blob_specs(self, bottoms: list[Shape]) -> list[BlobSpec]:
        one = pb.FillerParameter(type="constant", value=1)
        filler = self.param.filler if self.param.HasField("filler") else one
        specs = [self._spec("weight", filler)] if self.is_learned else []
        if self.param.bias_term:
            specs.append(self._spec("bias", self.param.bias_filler))
        return specs

    def multiply_adds(self, bottoms: list[Shape], tops: list[Shape]) -> int:
        return prod(tops[0]) if self.is_learned else 0

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        x, *given = bottoms
        y = x * (self._given(given[0]) if given else self._learned("weight"))
        return (y + self._learned("bias") if self.param.bias_term else y,)

    def onnx(self, graph: OnnxGraph, bottoms: list[str]) -> list[str]:
        x, *given = bottoms
        weight = self._given_onnx(graph, given[0]) if given else self._learned_onnx(graph, "weight")
        y = graph.node("Mul", [x, weight])
        return [graph.node("Add", [y, self._learned_onnx(graph, "bias")]) if self.param.bias_term else y]

    def source(self, code: SourceCode, bottoms: list[str]) -> list[str]:
        x, *given = bottoms
        weight = self._given_source(given[0]) if given else self._learned_source(code, "weight")
        bias = f" + {self._learned_source(code, 'bias')}" if self.param.bias_term else ""
        return [f"{x} * {weight}{bias}"]


@register("Bias")
class Bias(Overlay):
    """x + bias: learned, or from a second bottom."""

    message = "bias_param"
    fields = ("axis", "num_axes", "filler")

    def blob_specs(self, bottoms: list[Shape]) -> list[BlobSpec]:
        return [self._spec("bias", self.param.filler)] if self.is_learned else []

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        x, *given = bottoms
        return (x + (self._given(given[0]) if given else self._learned("bias")),)

    def onnx(self, graph: OnnxGraph, bottoms: list[str]) -> list[str]:
        x, *given = bottoms
        bias = self._given_onnx(graph, given[0]) if given else self._learned_onnx(graph, "bias")
        return [graph.node("Add", [x, bias])]

    def source(self, code: SourceCode, bottoms: list[str]) -> list[str]:
        x, *given = bottoms
        bias = self._given_source(given[0]) if given else self._learned_source(code, "bias")
        return [f"{x} + {bias}"]
