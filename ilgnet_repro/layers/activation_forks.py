"""Activations that only forks of Caffe have: functions of each value, CReLU and LogSoftmax.

Where several forks have a type, their values agree; gradients that no fork computes are those of the formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .activation import Function
from .loss import LOG_THRESHOLD, floored_log_softmax
from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, exact, literal, numbers, uses
from .support.registry import register_layer

# ---------------------------------------------------------------------- torch, also for written source


def hard_swish(x: Tensor) -> Tensor:
    """Return x · min(max(x + 3, 0), 6) / 6; unlike torch's its gradient is 0 at -3 and 1 at 3, as the fork's."""
    return x * F.relu6(x + 3) / 6


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Return alpha · x + beta, limited to 0 and 1."""
    return F.hardtanh(alpha * x + beta, 0.0, 1.0)


def negative_relu(x: Tensor, slope: float) -> Tensor:
    """Return min(x, 0) + slope · max(x, 0)."""
    return -F.leaky_relu(-x, slope)


def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Return alpha · tanh(beta · x)."""
    return alpha * torch.tanh(beta * x)


def selu(x: Tensor, alpha: float, scale: float) -> Tensor:
    """Return scale · x where positive, scale · alpha · (exp(x) - 1) elsewhere."""
    return scale * F.elu(x, alpha)


def xlu(x: Tensor, slope: float, minimum: float, maximum: Tensor | float) -> Tensor:
    """Return a leaky ReLU between limits (a minimum of 0 is none), 0 for NaN.

    The fork passes a gradient where x, not the rectified value, is between the limits.
    """
    top = F.leaky_relu(x, slope)
    top = torch.where(top.isnan(), 0, top)
    top = torch.where(top < maximum, top, maximum).to(x.dtype)
    inside = x < maximum
    if minimum:
        top, inside = top.clamp(min=minimum), inside & (x > minimum)
    return torch.where(inside, top, top.detach())


def both_signs(x: Tensor, slope: float, dim: int) -> Tensor:
    """Return the (leaky) ReLU of x and of -x, concatenated."""
    return torch.cat([F.leaky_relu(x, slope), F.leaky_relu(-x, slope)], dim)


def floored_log_softmax_along(x: Tensor, dim: int, floor: float) -> Tensor:
    """Return the log of the softmax along ``dim``, at least ``floor``."""
    return floored_log_softmax(x.movedim(dim, -1), floor).movedim(-1, dim)


uses(floored_log_softmax_along, floored_log_softmax)

# ---------------------------------------------------------------------- layers


@register_layer("Softplus")
class Softplus(Function):
    """log(1 + exp(x)) (source: synopsys-caffe, softplus_layer.cpp)."""

    torch_name, onnx_name = "F.softplus", "Softplus"


@register_layer("Softsign")
class Softsign(Function):
    """x / (1 + |x|) (source: synopsys-caffe, softsign_layer.cpp)."""

    torch_name, onnx_name = "F.softsign", "Softsign"


@register_layer("Mish")
class Mish(Function):
    """x · tanh(log(1 + exp(x))) (Misra, 2019; source: synopsys-caffe and troyliu0105/caffe, mish_layer.cpp)."""

    torch_name = "F.mish"

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [graph.node("Mul", [x, graph.node("Tanh", [graph.node("Softplus", [x])])])]


class _WithFields(Layer):
    """A function of each value and of the layer's fields."""

    in_place = True
    function: ClassVar[Callable[..., Tensor]]

    def arguments(self) -> tuple[float, ...]:
        """Return what the function takes after the blob."""
        return tuple(getattr(self.param, name) for name in self.fields)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (type(self).function(x, *self.arguments()),)

    def source(self, code: SourceCode, x: str) -> list[str]:
        arguments = ", ".join([x, *map(literal, self.arguments())])
        return [f"{code.helper(type(self).function)}({arguments})"]


@register_layer("HSwish", "HardSwish")
class HardSwish(_WithFields):
    """x · min(max(x + 3, 0), 6) / 6 (MobileNet v3).

    Source: aovoc/caffe, hswish_layer.cpp; synopsys-caffe, hard_swish_layer.cpp.
    """

    function = staticmethod(hard_swish)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [graph.node("Mul", [x, graph.node("HardSigmoid", [x], alpha=1 / 6, beta=0.5)])]


@register_layer("HSigmoid")
class HSigmoid(Layer):
    """min(max(x + 3, 0), 6) / 6 (source: aovoc/caffe, hsigmoid_layer.cpp)."""

    in_place = True

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (F.relu6(x + 3) / 6,)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [graph.node("HardSigmoid", [x], alpha=1 / 6, beta=0.5)]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"F.relu6({x} + 3) / 6"]


@register_layer("HardSigmoid")
class HardSigmoid(_WithFields):
    """alpha · x + beta, limited to 0 and 1 (source: synopsys-caffe, hard_sigmoid_layer.cpp)."""

    message = "hard_sigmoid_param"
    fields = ("alpha", "beta")
    function = staticmethod(hard_sigmoid)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [graph.node("HardSigmoid", [x], alpha=self.param.alpha, beta=self.param.beta)]


@register_layer("HardTanH", "HardTanh")
class HardTanH(Layer):
    """x limited to -1 and 1 (source: synopsys-caffe, hard_tanh_layer.cpp)."""

    in_place = True

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (F.hardtanh(x),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [graph.node("Clip", [x, *(graph.constant(numbers(limit)) for limit in (-1.0, 1.0))])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"F.hardtanh({x})"]


@register_layer("NegReLU")
class NegReLU(_WithFields):
    """min(x, 0) + negative_slope · max(x, 0) (source: flownet2, neg_relu_layer.cpp)."""

    message = "relu_param"
    fields = ("negative_slope",)
    function = staticmethod(negative_relu)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        flipped = graph.node("LeakyRelu", [graph.node("Neg", [x])], alpha=self.param.negative_slope)
        return [graph.node("Neg", [flipped])]


@register_layer("ScaledTanH")
class ScaledTanH(_WithFields):
    """alpha · tanh(beta · x) (source: synopsys-caffe, scaled_tanh_layer.cpp)."""

    message = "scaled_tanh_param"
    fields = ("alpha", "beta")
    function = staticmethod(scaled_tanh)

    def setup(self, rank: int) -> None:
        for field in self.fields:
            if not self.param.HasField(field):
                raise self.error(f"scaled_tanh_param.{field} is missing; state both alpha and beta")

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        alpha, beta = (graph.constant(numbers(value)) for value in self.arguments())
        return [graph.node("Mul", [alpha, graph.node("Tanh", [graph.node("Mul", [beta, x])])])]


@register_layer("SeLU", "SELU", "SeLu")
class SeLU(_WithFields):
    """lambda · x where positive, lambda · alpha · (exp(x) − 1) elsewhere (Klambauer et al., 2017).

    Source: synopsys-caffe, selu_layer.cpp; the spellings of the type are those of several forks.
    """

    message = "selu_param"
    fields = ("alpha",)
    fork_fields = ("selu_param.lambda",)  # no field of the schema: a keyword of Python
    function = staticmethod(selu)

    def setup(self, rank: int) -> None:
        text = self.fork_field("selu_param.lambda") or "1.050700987"
        try:
            self.scale = float(text)
        except ValueError:
            raise self.error(f"selu_param.lambda {text!r} is not a number") from None

    def arguments(self) -> tuple[float, ...]:
        return self.param.alpha, self.scale

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        alpha, scale = self.arguments()
        return [graph.node("Selu", [x], alpha=alpha, gamma=scale)]


@register_layer("ThresholdedReLU")
class ThresholdedReLU(Layer):
    """x where it is above alpha, else 0 (source: synopsys-caffe, thresholded_relu_layer.cpp)."""

    message = "thresholded_relu_param"
    in_place = True
    fields = ("alpha",)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (F.threshold(x, self.param.alpha, 0.0),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [graph.node("ThresholdedRelu", [x], alpha=self.param.alpha)]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"F.threshold({x}, {literal(self.param.alpha)}, 0.0)"]


@register_layer("XLU")
class XLU(Layer):
    """A leaky ReLU limited to ``minimum`` and ``maximum`` where these are not 0, and to 6 with ``relu6``; 0 for NaN.

    The first value of an optional second bottom replaces ``maximum``; one that is not over 0 is no limit.
    Source: synopsys-caffe, xlu_layer.cpp.
    """

    message = "xlu_param"
    fields = ("negative_slope", "minimum", "maximum", "relu6")
    bottom_count = (1, 2)

    def setup(self, *ranks: int) -> None:
        self.slope: float = self.param.negative_slope
        self.least: float = self.param.minimum
        self.limit = 6.0 if self.param.relu6 else math.inf
        if len(self.node.bottoms) == 1 and self.param.maximum > 0:
            self.limit = min(self.limit, self.param.maximum)

    def can_be_in_place(self) -> bool:
        return len(self.node.bottoms) == 1

    def plan(self, x: Shape, *maximum: Shape) -> LayerPlan:
        return LayerPlan([x])

    def forward(self, x: Tensor, *given: Tensor) -> tuple[Tensor]:
        maximum: Tensor | float = self.limit
        if given:
            first = given[0].detach().flatten()[0]
            maximum = torch.where(first > 0, first, math.inf).clamp(max=self.limit)
        return (xlu(x, self.slope, self.least, maximum),)

    def onnx(self, graph: OnnxGraph, x: str, *given: str) -> list[str]:
        def scalar(value: float) -> str:
            return graph.constant(numbers(value))

        top = graph.node("LeakyRelu", [x], alpha=self.slope)
        top = graph.node("Where", [graph.node("IsNaN", [top]), scalar(0), top])
        limit = scalar(self.limit)
        if given:
            flat = graph.node("Reshape", [given[0], graph.constant(np.asarray([-1], np.int64))])
            first = graph.node("Gather", [flat, graph.constant(np.asarray(0, np.int64))], axis=0)
            stated = graph.node("Where", [graph.node("Greater", [first, scalar(0)]), first, scalar(math.inf)])
            limit = graph.node("Min", [limit, stated])
        top = graph.node("Min", [top, limit])
        return [graph.node("Max", [top, scalar(self.least)]) if self.least else top]

    def source(self, code: SourceCode, x: str, *given: str) -> list[str]:
        limit = exact(self.limit) if math.isinf(self.limit) else literal(self.limit)
        if given:
            first = f"{given[0]}.detach().flatten()[0]"
            limit = f"torch.where({first} > 0, {first}, math.inf).clamp(max={limit})"
        return [f"{code.helper(xlu)}({x}, {literal(self.slope)}, {literal(self.least)}, {limit})"]


@register_layer("CReLU")
class CReLU(Layer):
    """ReLU(x) and ReLU(−x), concatenated on ``concat_axis`` (Shang et al., 2016).

    Source: Cambricon/caffe, crelu_layer.cpp; the axis of winggan/caffe's is always 1.
    """

    message = "crelu_param"
    fields = ("negative_slope", "concat_axis")

    def setup(self, rank: int) -> None:
        self.slope: float = self.param.negative_slope
        self.dim = self.axis(self.param.concat_axis, rank, field="concat_axis")

    def plan(self, x: Shape) -> LayerPlan:
        return LayerPlan([(*x[: self.dim], 2 * x[self.dim], *x[self.dim + 1 :])])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (both_signs(x, self.slope, self.dim),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        signs = [x, graph.node("Neg", [x])]
        return [
            graph.node(
                "Concat",
                [graph.node("LeakyRelu", [value], alpha=self.slope) for value in signs],
                axis=self.dim,
            )
        ]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"{code.helper(both_signs)}({x}, {literal(self.slope)}, {self.dim})"]


@register_layer("LogSoftmax")
class LogSoftmax(Layer):
    """The logarithm of Softmax along ``axis``; the softmax is at least 1e-20.

    Source: synopsys-caffe, log_softmax_layer.cpp.
    """

    message = "log_softmax_param"
    in_place = True
    fields = ("axis",)
    floor = math.log(LOG_THRESHOLD)
    no_float16 = "exponentials"

    def setup(self, rank: int) -> None:
        self.dim = self.axis(self.param.axis, rank)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (floored_log_softmax_along(x, self.dim, self.floor),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        log_p = graph.node("LogSoftmax", [x], axis=self.dim)
        return [graph.node("Max", [log_p, graph.constant(numbers(self.floor))])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"{code.helper(floored_log_softmax_along)}({x}, {self.dim}, {self.floor!r})"]
