"""Arithmetic on one blob: Reduction over axes, and Power, Exp, Log and NegSquare of each value."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..schema import caffe_pb2 as pb
from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, exact, integers, numbers
from .support.registry import register_layer


def scalar_onnx(graph: OnnxGraph, value: float) -> str:
    """Return a scalar constant, so that a scalar top stays one."""
    return graph.constant(numbers([value]).reshape(()))


def shortest(value: float) -> float:
    """Return the shortest decimal of a float32 field as a double: 0.1, not 0.10000000149011612."""
    return float(str(np.float32(value)))


@register_layer("Reduction")
class Reduction(Layer):
    """Sum, sum of absolute values, sum of squares or mean over the axes from `axis` on, times `coeff`."""

    message = "reduction_param"
    fields = ("operation", "axis", "coeff")
    no_float16 = "sums of many values"

    def setup(self, rank: int) -> None:
        self.operation = pb.ReductionParameter.ReductionOp.Name(self.param.operation)
        self.coeff = shortest(self.param.coeff)
        self.axes = tuple(range(self.axis(self.param.axis, rank), rank))

    def plan(self, x: Shape) -> LayerPlan:
        return LayerPlan([x[: self.axes[0]]])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = {"ASUM": torch.abs, "SUMSQ": torch.square}.get(self.operation, lambda values: values)(x)
        y = x.mean(self.axes) if self.operation == "MEAN" else x.sum(self.axes)
        return (y if self.coeff == 1 else y * self.coeff,)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        op = {"SUM": "ReduceSum", "ASUM": "ReduceL1", "SUMSQ": "ReduceSumSquare", "MEAN": "ReduceMean"}
        y = graph.node(op[self.operation], [x, graph.constant(integers(*self.axes))], keepdims=0)
        return [y if self.coeff == 1 else graph.node("Mul", [y, scalar_onnx(graph, self.coeff)])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        first = {"ASUM": ".abs()", "SUMSQ": ".square()"}.get(self.operation, "")
        factor = "" if self.coeff == 1 else f" * {exact(self.coeff)}"
        axes = self.axes if len(self.axes) > 1 else self.axes[0]
        return [f"{x}{first}.{'mean' if self.operation == 'MEAN' else 'sum'}({axes}){factor}"]


class _Elementwise(Layer):
    """Shared by Power, Exp and Log: functions of shift + scale · x."""

    in_place = True

    def setup(self, rank: int) -> None:
        self.scale = shortest(self.param.scale)
        self.shift = shortest(self.param.shift)

    def _read_base(self, stated: float | None = None) -> float | None:
        """Return the base, or None for -1, which means e."""
        base = shortest(self.param.base) if stated is None else stated
        if base == -1:
            return None
        if base <= 0 or not np.isfinite(base):
            raise self.error(f"base {base:g} must be over 0, or -1 for e")
        return base

    def _inner(self, x: Tensor) -> Tensor:
        x = x if self.scale == 1 else x * self.scale
        return x if self.shift == 0 else x + self.shift

    def _inner_onnx(self, graph: OnnxGraph, x: str) -> str:
        x = x if self.scale == 1 else graph.node("Mul", [x, scalar_onnx(graph, self.scale)])
        return x if self.shift == 0 else graph.node("Add", [x, scalar_onnx(graph, self.shift)])

    def _inner_source(self, x: str) -> str:
        shift = f" {'-' if self.shift < 0 else '+'} {exact(abs(self.shift))}" if self.shift else ""
        return (x if self.scale == 1 else f"{x} * {exact(self.scale)}") + shift


@register_layer("Power")
class Power(_Elementwise):
    """(shift + scale · x) ^ power; with power 0 it is 1 everywhere, without a gradient."""

    message = "power_param"
    fields = ("power", "scale", "shift")
    no_float16 = "exponentials"

    def setup(self, rank: int) -> None:
        super().setup(rank)
        self.power = shortest(self.param.power)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        inner = self._inner(x)
        return (inner if self.power == 1 else inner**self.power,)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        inner = self._inner_onnx(graph, x)
        return [inner if self.power == 1 else graph.node("Pow", [inner, scalar_onnx(graph, self.power)])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        inner = self._inner_source(x)
        if self.power == 1:
            return [inner]
        return [f"{inner if inner == x else f'({inner})'} ** {exact(self.power)}"]


@register_layer("Exp")
class Exp(_Elementwise):
    """base ^ (shift + scale · x); the base -1 means e."""

    message = "exp_param"
    fields = ("base", "scale", "shift")
    no_float16 = "exponentials"

    def setup(self, rank: int) -> None:
        super().setup(rank)
        self.base = self._read_base()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        inner = self._inner(x)
        return (inner.exp() if self.base is None else torch.pow(self.base, inner),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        inner = self._inner_onnx(graph, x)
        if self.base is None:
            return [graph.node("Exp", [inner])]
        return [graph.node("Pow", [scalar_onnx(graph, self.base), inner])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        inner = self._inner_source(x)
        if self.base is None:
            return [f"torch.exp({inner})"]
        return [f"{exact(self.base)} ** {inner if inner == x else f'({inner})'}"]


@register_layer("ExpMax")
class ExpMax(Exp):
    """base ^ (shift + scale · (x - max)) with the maximum over the channels at each position of an image.

    No gradient passes through the maximum.  Source: twhui/LiteFlowNet, expmax_layer.cu, which subtracts the maximum
    of the first image of a batch only: the others' values there are larger or smaller by one factor per position.
    """

    message = ""
    fork_fields = ("expmax_param", "expmax_param.base", "expmax_param.scale", "expmax_param.shift")
    no_float16 = "exponentials"
    note = "subtracts each image's maximum; LiteFlowNet's Caffe that of the first image only, and nothing from the others"

    def setup(self, rank: int) -> None:
        if not 2 <= rank <= 4:
            raise self.error(f"a bottom of {rank} axes is not supported; it takes 2 to 4")
        self.scale, self.shift = self._number("scale", 1.0), self._number("shift", 0.0)
        self.base = self._read_base(self._number("base", -1.0))

    def _number(self, name: str, default: float) -> float:
        text = self.fork_field(f"expmax_param.{name}")
        try:
            return default if text is None else float(text)
        except ValueError:
            raise self.error(f"expmax_param.{name} {text} must be a number") from None

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return super().forward(x - x.detach().amax(1, keepdim=True))

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        most = graph.node("ReduceMax", [x, graph.constant(integers(1))], keepdims=1)
        return super().onnx(graph, graph.node("Sub", [x, most]))

    def source(self, code: SourceCode, x: str) -> list[str]:
        return super().source(code, f"({x} - {x}.amax(1, keepdim=True))")


@register_layer("NegSquare")
class NegSquare(Layer):
    """-x²; its gradient is 0, as in the fork, whose backward pass multiplies memory that nothing writes.

    Source: twhui/LiteFlowNet, negsquare_layer.cu.
    """

    def setup(self, rank: int) -> None:
        self.note = "its gradient is 0, as in LiteFlowNet's Caffe" if self.is_train else ""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (-x.detach().square(),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [graph.node("Neg", [graph.node("Mul", [x, x])])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"-{x}.square()"]


@register_layer("Log")
class Log(_Elementwise):
    """Logarithm of shift + scale · x to a base; -1 means e."""

    message = "log_param"
    fields = ("base", "scale", "shift")
    no_float16 = "exponentials"

    def setup(self, rank: int) -> None:
        super().setup(rank)
        self.base = self._read_base()
        if self.base == 1:
            raise self.error("base 1 has no logarithms")

    def forward(self, x: Tensor) -> tuple[Tensor]:
        y = self._inner(x).log()
        return (y if self.base is None else y / math.log(self.base),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        y = graph.node("Log", [self._inner_onnx(graph, x)])
        return [y if self.base is None else graph.node("Div", [y, scalar_onnx(graph, math.log(self.base))])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        base = "" if self.base is None else f" / math.log({exact(self.base)})"
        return [f"torch.log({self._inner_source(x)}){base}"]
