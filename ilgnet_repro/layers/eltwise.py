"""Arithmetic on several blobs: Eltwise, and SENet's Axpy."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

from ..schema import caffe_pb2 as pb
from .math import scalar_onnx, shortest
from .support.base import ANY_LAYOUT, Layer, LayerPlan, OnnxGraph, Shape, SourceCode, exact, integers
from .support.registry import register_layer
from .support.shared import values_of

T = TypeVar("T")


def eltwise_max(first: Tensor, second: Tensor, *later: Tensor) -> Tensor:
    """Return the maximum with Caffe's gradient: in a tie of the first two the second gets it, else the earlier one."""
    best = torch.where(first > second, first, second)
    for x in later:
        best = torch.where(x > best, x, best)
    return best


@register_layer("Eltwise")
class Eltwise(Layer):
    """Product, maximum or (weighted by `coeff`) sum of blobs of one shape; FlowNet's Caffe takes a sum of one blob too.

    Written in place, a sum or maximum is that of the other bottoms: Caffe on the CPU clears its top, which is
    the first bottom, before it reads it.
    """

    message = "eltwise_param"
    layout = ANY_LAYOUT
    fields = ("operation", "coeff")
    # Without it Caffe divides the product by the factor: NaN at 0, otherwise the same.
    ignored_fields = ("stable_prod_grad",)
    bottom_count = (1, None)
    no_float16 = ""

    def setup(self, *ranks: int) -> None:
        self.operation = pb.EltwiseParameter.EltwiseOp.Name(self.param.operation)
        if len(ranks) == 1:
            if self.operation != "SUM" or self.node.is_in_place:
                # The forks' code reads a second bottom for these; in place it clears its only one.
                raise self.error(
                    "has 1 bottoms; it takes 2 or more (FlowNet's takes 1 for a SUM that is not in place)"
                )
            self.note = "a sum of one bottom: FlowNet's Caffe scales it by coeff, BVLC's refuses it"
        self.coeff = [shortest(value) for value in self.param.coeff]
        if self.coeff and self.operation != "SUM":
            raise self.error(f"coeff goes with operation SUM only, not {self.operation}")
        if self.coeff and len(self.coeff) != len(self.node.bottoms):
            raise self.error(f"coeff is stated {len(self.coeff)} times for {len(self.node.bottoms)} bottoms")
        self.clears_first = self.node.is_in_place and self.operation != "PROD"

    def can_be_in_place(self) -> bool:
        # Caffe computes the gradients of a product and a maximum from values that were overwritten.
        return self.param.operation == pb.EltwiseParameter.SUM or not self.is_train

    def plan(self, *bottoms: Shape) -> LayerPlan:
        for shape in bottoms:
            if shape != bottoms[0]:
                raise self.error(f"bottoms {list(bottoms[0])} and {list(shape)} differ in shape")
        return LayerPlan(bottoms[:1])

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        if self.operation == "PROD":
            return (prod(bottoms[1:], start=bottoms[0]),)
        if self.operation == "MAX":
            read = self._read(bottoms)
            return (eltwise_max(*read) if len(read) > 1 else read[0],)
        if len(bottoms) == 1:
            return (bottoms[0] * (self.coeff or [1.0])[0],)  # a new tensor: the next layer may overwrite it
        terms = [c * x for c, x in zip(self.coeff, bottoms, strict=True)] if self.coeff else bottoms
        others = sum(terms[2:], start=terms[1])
        if not self.clears_first:
            return (terms[0] + others,)
        # Caffe's backward pass is that of the full sum, but the first bottom's gradient is in the top's memory, so it
        # is already multiplied by its coefficient when the others' are computed.
        factor = self.coeff[0] if self.coeff and bottoms[0].requires_grad else 1
        return (values_of(others, terms[0] + factor * others),)

    def onnx(self, graph: OnnxGraph, *bottoms: str) -> list[str]:
        if self.operation == "PROD":
            product, *others = bottoms
            for x in others:
                product = graph.node("Mul", [product, x])
            return [product]
        terms, coeff = self._read(bottoms), self._read(self.coeff)
        if coeff:
            factors = [scalar_onnx(graph, value) for value in coeff]
            terms = [
                x if value == 1 else graph.node("Mul", [x, factor])
                for x, value, factor in zip(terms, coeff, factors, strict=True)
            ]
        return [graph.node("Max" if self.operation == "MAX" else "Sum", terms)]

    def source(self, code: SourceCode, *bottoms: str) -> list[str]:
        if self.operation == "PROD":
            return [" * ".join(bottoms)]
        terms, coeff = self._read(bottoms), self._read(self.coeff)
        if self.operation == "MAX" and len(terms) > 1:
            return [f"{code.helper(eltwise_max)}({', '.join(terms)})"]
        if not coeff:
            return [" + ".join(terms)]
        text = ""
        for value, x in zip(coeff, terms, strict=True):
            sign = ("-" if value < 0 else "") if not text else (" - " if value < 0 else " + ")
            text += sign + (x if abs(value) == 1 else f"{exact(abs(value))} * {x}")
        return [text]

    def _read(self, bottoms: Sequence[T]) -> list[T]:
        """Return the entries of the bottoms that are read before they are overwritten."""
        return list(bottoms[1:] if self.clears_first else bottoms)


@register_layer("Axpy")
class Axpy(Layer):
    """a · x + y with one factor per channel of each image, N×C or N×C×1×1 (SENet)."""

    bottom_count = (3, 3)

    def setup(self, factors: int, x: int, y: int) -> None:
        self.trailing_axes = x - factors

    def plan(self, factors: Shape, x: Shape, y: Shape) -> LayerPlan:
        if x != y:
            raise self.error(f"the second and third bottoms {list(x)} and {list(y)} differ in shape")
        ones = factors[2:]
        if len(x) < 2 or factors[:2] != x[:2] or ones not in ((), (1,) * (len(x) - 2)):
            raise self.error(
                f"the first bottom {list(factors)} must hold one factor per channel of {list(x)}"
            )
        return LayerPlan([x])

    def forward(self, factors: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor]:
        return (factors[(..., *(None,) * self.trailing_axes)] * x + y,)

    def onnx(self, graph: OnnxGraph, factors: str, x: str, y: str) -> list[str]:
        if self.trailing_axes:
            axes = graph.constant(integers(*range(2, 2 + self.trailing_axes)))
            factors = graph.node("Unsqueeze", [factors, axes])
        return [graph.node("Add", [graph.node("Mul", [factors, x]), y])]

    def source(self, code: SourceCode, factors: str, x: str, y: str) -> list[str]:
        index = f"[:, :, {', '.join(['None'] * self.trailing_axes)}]" if self.trailing_axes else ""
        return [f"{factors}{index} * {x} + {y}"]
