"""Arithmetic on several blobs: Eltwise, and SENet's Axpy."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ..schema import caffe_pb2 as pb
from .base import Layer, OnnxGraph, Shape, SourceCode, exact, integers
from .math import scalar_onnx, shortest
from .registry import register


def eltwise_max(first, second, *later):
    """Maximum with Caffe's gradient: in a tie of the first two it goes to the second, else to the first."""
    best = torch.where(first > second, first, second)
    for x in later:
        best = torch.where(x > best, x, best)
    return best


@register("Eltwise")
class Eltwise(Layer):
    """Product, maximum or (weighted by `coeff`) sum of blobs of one shape."""

    message = "eltwise_param"
    fields = ("operation", "coeff")
    # Without it Caffe divides the product by the factor, which gives NaN at 0 and else the same.
    harmless = ("stable_prod_grad",)
    bottom_count = (2, None)

    def setup(self) -> None:
        self.operation = pb.EltwiseParameter.EltwiseOp.Name(self.param.operation)
        self.coeff = [shortest(value) for value in self.param.coeff]
        if self.coeff and self.operation != "SUM":
            raise self.error(f"coeff goes with operation SUM only, not {self.operation}")
        if self.coeff and len(self.coeff) != len(self.node.bottoms):
            raise self.error(f"coeff is stated {len(self.coeff)} times for {len(self.node.bottoms)} bottoms")

    def top_shapes(self, bottoms: list[Shape]) -> list[Shape]:
        for shape in bottoms:
            if shape != bottoms[0]:
                raise self.error(f"bottoms {list(bottoms[0])} and {list(shape)} differ in shape")
        return [bottoms[0]]

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        if self.operation == "MAX":
            return (eltwise_max(*bottoms),)
        if self.operation == "PROD":
            return (prod(bottoms[1:], start=bottoms[0]),)
        terms = [c * x for c, x in zip(self.coeff, bottoms, strict=True)] if self.coeff else bottoms
        return (sum(terms[1:], start=terms[0]),)

    def onnx(self, graph: OnnxGraph, bottoms: list[str]) -> list[str]:
        if self.operation == "PROD":
            product, *others = bottoms
            for x in others:
                product = graph.node("Mul", [product, x])
            return [product]
        if self.coeff:
            factors = [scalar_onnx(graph, value) for value in self.coeff]
            bottoms = [
                x if value == 1 else graph.node("Mul", [x, factor])
                for x, value, factor in zip(bottoms, self.coeff, factors, strict=True)
            ]
        return [graph.node("Max" if self.operation == "MAX" else "Sum", bottoms)]

    def source(self, code: SourceCode, bottoms: list[str]) -> list[str]:
        if self.operation == "MAX":
            return [f"{code.helper(eltwise_max)}({', '.join(bottoms)})"]
        if self.operation == "PROD":
            return [" * ".join(bottoms)]
        if not self.coeff:
            return [" + ".join(bottoms)]
        text = ""
        for value, x in zip(self.coeff, bottoms, strict=True):
            sign = ("-" if value < 0 else "") if not text else (" - " if value < 0 else " + ")
            text += sign + (x if abs(value) == 1 else f"{exact(abs(value))} * {x}")
        return [text]


@register("Axpy")
class Axpy(Layer):
    """a · x + y with a factor for each channel of each picture, N×C or N×C×1×1 (SENet)."""

    bottom_count = (3, 3)

    def top_shapes(self, bottoms: list[Shape]) -> list[Shape]:
        factors, x, y = bottoms
        if x != y:
            raise self.error(f"the second and third bottoms {list(x)} and {list(y)} differ in shape")
        ones = factors[2:]
        if len(x) < 2 or factors[:2] != x[:2] or ones not in ((), (1,) * (len(x) - 2)):
            raise self.error(f"the first bottom {list(factors)} must hold one factor a channel of {list(x)}")
        self.behind = len(x) - len(factors)
        return [x]

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        factors, x, y = bottoms
        return (factors[(..., *(None,) * self.behind)] * x + y,)

    def onnx(self, graph: OnnxGraph, bottoms: list[str]) -> list[str]:
        factors, x, y = bottoms
        if self.behind:
            axes = graph.constant(integers(*range(2, 2 + self.behind)))
            factors = graph.node("Unsqueeze", [factors, axes])
        return [graph.node("Add", [graph.node("Mul", [factors, x]), y])]

    def source(self, code: SourceCode, bottoms: list[str]) -> list[str]:
        factors, x, y = bottoms
        lifted = f"[:, :, {', '.join(['None'] * self.behind)}]" if self.behind else ""
        return [f"{factors}{lifted} * {x} + {y}"]
