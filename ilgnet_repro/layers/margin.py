"""Dense layers with an angular margin for the label's class: SphereFace's and L-Softmax's inner products.

psi(theta) = (-1)^k cos(m theta) - 2k on [k pi / m, (k + 1) pi / m] replaces cos(theta) for the label's class, where m is 1
to 4 (SINGLE to QUADRUPLE).  The result is mixed with the plain product:
(|x| |w| psi + lambda x·w) / (1 + lambda), lambda = max(base (1 + gamma iteration)^-power, lambda_min).
"""

from __future__ import annotations

from math import prod
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .support.base import (
    BlobSpec,
    LayerPlan,
    OnnxGraph,
    Shape,
    SourceCode,
    exact,
    integers,
    numbers,
    uses,
)
from .support.iteration import CountsPasses, constant_top
from .support.labels import check_labels, labels_onnx
from .support.registry import register_layer

# ---------------------------------------------------------------------- torch, also for written source


def angular_margin(cos: Tensor, times: int) -> tuple[Tensor, Tensor]:
    """Return psi(theta) for cos(theta) and its derivative by cos(theta)."""
    sign = cos.sign()
    if times == 1:
        return cos, torch.ones_like(cos)
    if times == 2:
        return 2 * sign * cos**2 - 1, 4 * sign * cos
    if times == 3:
        turn = (cos.abs() - 0.5).sign()
        return turn * (4 * cos**3 - 3 * cos) + sign * (1 + turn) - 2, turn * (12 * cos**2 - 3)
    turn = sign * (2 * cos**2 - 1).sign()
    psi = turn * (8 * cos**4 - 8 * cos**2 + 1) + 2 * sign + turn - 3
    return psi, turn * (32 * cos**3 - 16 * cos)


def large_margin(x: Tensor, weight: Tensor, labels: Tensor, times: int, mix: float) -> Tensor:
    """Return x·w with the margin for the label's class; ``mix`` is lambda."""
    rows = F.linear(x, weight)
    own = F.one_hot(labels.reshape(rows.shape[:-1]).long(), weight.shape[0]).bool()
    length = x.norm(dim=-1, keepdim=True) * weight.norm(dim=1) + 1e-9
    psi, _ = angular_margin(rows / length, times)
    return torch.where(own, (length * psi + mix * rows) / (1 + mix), rows)


def sphere_margin(x: Tensor, weight: Tensor, labels: Tensor, times: int, mix: float) -> Tensor:
    """Return x·w for rows w of length 1 with the margin for the label's class; ``mix`` is lambda.

    The fork's gradients: that of the weights is of the plain product; that of x for the label's class has its two
    coefficients (along w and along x) divided by their length.
    """
    fixed, unit = x.detach(), (weight / weight.norm(dim=1, keepdim=True)).detach()
    rows, length = F.linear(fixed, unit), fixed.norm(dim=-1, keepdim=True)
    own = F.one_hot(labels.reshape(rows.shape[:-1]).long(), weight.shape[0]).bool()
    cos = rows / length
    psi, slope = angular_margin(cos, times)
    top = torch.where(own, (length * psi + mix * rows) / (1 + mix), rows)
    along_x = (psi - cos * slope) / length
    plain = F.linear(x, unit)
    turned = (slope * plain + along_x * (x * fixed).sum(-1, keepdim=True)) / torch.hypot(slope, along_x)
    path = torch.where(own, (turned + mix * plain) / (1 + mix), plain) + F.linear(fixed, weight)
    return top + (path - path.detach())


uses(large_margin, angular_margin)
uses(sphere_margin, angular_margin)

# ---------------------------------------------------------------------- layers


class _MarginInnerProduct(CountsPasses):
    """The fields, shapes and ONNX of both layers; the second top is lambda."""

    fields = (
        *("num_output", "type", "weight_filler", "axis"),
        *("base", "gamma", "power", "iteration", "lambda_min"),
    )
    bottom_count = (2, 2)
    top_count = (1, 2)
    index_bottoms = (1,)
    normalizes_weight: ClassVar[bool]

    def setup(self, rank: int, labels: int) -> None:
        self.start_counting()
        self.start = self.axis(self.param.axis, rank)
        self.outputs: int = self.param.num_output
        self.times = int(self.param.type) + 1
        if not self.outputs:
            raise self.error("num_output is 0 or absent; state the number of outputs")
        if self.param.gamma < 0 or self.param.iteration < 0:
            raise self.error(
                f"gamma {self.param.gamma:g} and iteration {self.param.iteration} must be at least 0"
            )

    def plan(self, x: Shape, labels: Shape) -> LayerPlan:
        rows = prod(x[: self.start])
        if x[:1] != labels[:1] or prod(labels) != rows:
            raise self.error(
                f"has {prod(labels)} labels {list(labels)} for {rows} rows of {list(x)}; give one label per row"
            )
        top, inputs = (*x[: self.start], self.outputs), prod(x[self.start :])
        blobs = [BlobSpec("weight", (self.outputs, inputs), self.param.weight_filler)]
        return LayerPlan([top, (1,)][: len(self.node.tops)], blobs, prod(top) * inputs)

    def _lambda(self, passes: int) -> float:
        iteration = self.param.iteration + passes + 1
        value = self.param.base * (1 + self.param.gamma * iteration) ** -self.param.power
        return float(max(value, self.param.lambda_min))

    def _store_units(self) -> None:
        """Keep the weights' rows at length 1, as the fork does in each pass."""
        with torch.no_grad():
            weight = self.blob("weight")
            weight.copy_(weight / weight.norm(dim=1, keepdim=True))

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        check_labels(self, labels, self.outputs, None)
        mix = self._lambda(self.take_pass())
        if self.normalizes_weight and self.training and not torch.compiler.is_exporting():
            self._store_units()
        function = sphere_margin if self.normalizes_weight else large_margin
        top = function(x.flatten(self.start), self.blob("weight"), labels, self.times, mix)
        return (top, constant_top(mix, x))[: len(self.node.tops)]

    def onnx(self, graph: OnnxGraph, x: str, labels: str) -> list[str]:
        from onnx import TensorProto

        def scalar(value: float) -> str:
            return graph.constant(numbers(value))

        def times(*values: str) -> str:
            first, *others = values
            for other in others:
                first = graph.node("Mul", [first, other])
            return first

        def plus(first: str, second: str | float) -> str:
            return graph.node("Add", [first, second if isinstance(second, str) else scalar(second)])

        weight, mix = self.blob("weight").detach(), self._lambda(0)
        length_of_rows = weight.norm(dim=1)
        if self.normalizes_weight:
            weight, length_of_rows = weight / length_of_rows[:, None], torch.ones_like(length_of_rows)
        inputs = graph.constant(integers(-1, weight.shape[1]))
        flat = graph.node("Reshape", [x, inputs])
        rows = graph.node("MatMul", [flat, graph.constant(numbers(weight.t()))])
        length = graph.node("ReduceL2", [flat, graph.constant(integers(-1))], keepdims=1)
        length = times(length, graph.constant(numbers(length_of_rows)))
        cos = graph.node("Div", [rows, length if self.normalizes_weight else plus(length, 1e-9)])
        psi = cos
        sign, square = graph.node("Sign", [cos]), times(cos, cos)
        if self.times == 2:
            psi = plus(times(sign, square, scalar(2)), -1)
        elif self.times == 3:
            turn = graph.node("Sign", [plus(graph.node("Abs", [cos]), -0.5)])
            triple = times(cos, plus(times(square, scalar(4)), -3))
            psi = plus(plus(times(turn, triple), times(sign, plus(turn, 1))), -2)
        elif self.times == 4:
            turn = times(sign, graph.node("Sign", [plus(times(square, scalar(2)), -1)]))
            fourfold = plus(times(square, plus(square, -1), scalar(8)), 1)
            psi = plus(plus(plus(times(turn, fourfold), times(sign, scalar(2))), turn), -3)
        mixed = plus(times(length, psi), times(rows, scalar(mix)))
        mixed = graph.node("Div", [mixed, scalar(1 + mix)])
        classes, _ = labels_onnx(graph, labels, None)
        every = graph.constant(np.arange(self.outputs, dtype=np.int64))
        top = graph.node("Where", [graph.node("Equal", [classes, every]), mixed, rows])
        if self.start != 1:
            leading = graph.node("Shape", [x], start=0, end=self.start)
            shape = graph.node("Concat", [leading, graph.constant(integers(self.outputs))], axis=0)
            top = graph.node("Reshape", [top, shape])
        second = graph.node("Cast", [graph.constant(numbers([mix]))], to=TensorProto.FLOAT)
        return [top, second][: len(self.node.tops)]

    def source(self, code: SourceCode, x: str, labels: str) -> list[str]:
        mix = exact(self._lambda(0))
        flat = x if len(code.shape(0)) == self.start + 1 else f"{x}.flatten({self.start or ''})"
        helper = code.helper(sphere_margin if self.normalizes_weight else large_margin)
        weight = code.parameter("weight", self.blob("weight"))
        call = f"{helper}({flat}, {weight}, {labels}, {self.times}, {mix})"
        return [call, f"{x}.new_tensor([{mix}])"][: len(self.node.tops)]


@register_layer("MarginInnerProduct")
class MarginInnerProduct(_MarginInnerProduct):
    """A-Softmax of SphereFace (Liu et al., 2017): rows of the weights have length 1 and are stored so in training.

    Source: wy1iu/sphereface, margin_inner_product_layer.cpp.
    """

    message = "margin_inner_product_param"
    normalizes_weight = True


@register_layer("LargeMarginInnerProduct")
class LargeMarginInnerProduct(_MarginInnerProduct):
    """L-Softmax (Liu et al., 2016): the weights keep their lengths.

    Source: wy1iu/LargeMargin_Softmax_Loss, largemargin_inner_product_layer.cpp.
    """

    message = "largemargin_inner_product_param"
    normalizes_weight = False
