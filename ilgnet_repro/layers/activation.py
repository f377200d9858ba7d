"""Activations: functions of each value, and Softmax over one axis."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
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
    literal,
    numbers,
)
from .support.registry import register_layer


def limited_relu(x: Tensor, slope: float, limit: float) -> Tensor:
    """Return the (leaky) ReLU, at most ``limit``; the fork passes the gradient of values above it too."""
    top = F.leaky_relu(x, slope)
    return torch.where(top > limit, limit + (top - top.detach()).nan_to_num(), top)


@register_layer("ReLU")
class ReLU(Layer):
    """max(x, 0) + negative_slope · min(x, 0), at most upper_limit where that is not 0 (Cambricon's Caffe)."""

    message = "relu_param"
    layout = ANY_LAYOUT
    in_place = True
    fields = ("negative_slope", "upper_limit")
    no_float16 = ""

    def setup(self, rank: int) -> None:
        self.slope: float = self.param.negative_slope
        self.limit: int = self.param.upper_limit

    @property
    def is_plain(self) -> bool:
        """Whether it is max(x, 0)."""
        return not (self.slope or self.limit)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        if self.limit:
            return (limited_relu(x, self.slope, self.limit),)
        return (F.leaky_relu(x, self.slope) if self.slope else torch.relu(x),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        top = graph.node("LeakyRelu", [x], alpha=self.slope) if self.slope else graph.node("Relu", [x])
        return [graph.node("Min", [top, graph.constant(numbers(self.limit))]) if self.limit else top]

    def source(self, code: SourceCode, x: str) -> list[str]:
        if self.limit:
            return [f"{code.helper(limited_relu)}({x}, {literal(self.slope)}, {literal(self.limit)})"]
        slope = f", {literal(self.slope)}" if self.slope else ""
        return [f"F.{'leaky_relu' if self.slope else 'relu'}({x}{slope})"]


@register_layer("ReLU6")
class ReLU6(Layer):
    """min(max(x, 0) + negative_slope · min(x, 0), threshold); no gradient at the threshold and above.

    Both fields are of forks (MobileNet and its YOLO); without a slope there is no gradient at 0 either.
    """

    message = "relu6_param"
    layout = ANY_LAYOUT
    in_place = True
    fields = ("threshold", "negative_slope")
    no_float16 = ""

    def setup(self, rank: int) -> None:
        self.threshold: float = self.param.threshold
        self.slope: float = self.param.negative_slope
        if not self.threshold > 0:
            raise self.error(f"threshold {self.threshold:g} must be over 0")

    def forward(self, x: Tensor) -> tuple[Tensor]:
        if self.slope:
            return (F.hardtanh(F.leaky_relu(x, self.slope), -math.inf, self.threshold),)
        return (F.hardtanh(x, 0.0, self.threshold),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        limits = [graph.constant(numbers([value]).reshape(())) for value in (0.0, self.threshold)]
        if self.slope:
            return [graph.node("Min", [graph.node("LeakyRelu", [x], alpha=self.slope), limits[1]])]
        return [graph.node("Clip", [x, *limits])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        if self.slope:
            leaky = f"F.leaky_relu({x}, {literal(self.slope)})"
            return [f"F.hardtanh({leaky}, -math.inf, {literal(self.threshold)})"]
        if self.threshold == 6:
            return [f"F.relu6({x})"]
        return [f"F.hardtanh({x}, 0.0, {literal(self.threshold)})"]


@register_layer("PReLU")
class PReLU(Layer):
    """max(x, 0) + slope · min(x, 0) with a learned slope per channel (axis 1) or one for all (He et al., 2015)."""

    slope: Tensor

    message = "prelu_param"
    layout = ANY_LAYOUT
    in_place = True
    fields = ("filler", "channel_shared")
    no_float16 = ""

    def plan(self, x: Shape) -> LayerPlan:
        if len(x) < 2:
            raise self.error(f"bottom {list(x)} has no channel axis; it takes 2 axes or more")
        shape = () if self.param.channel_shared else x[1:2]
        default = pb.FillerParameter(type="constant", value=0.25)
        filler = self.param.filler if self.param.HasField("filler") else default
        return LayerPlan([x], [BlobSpec("slope", shape, filler)])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (F.prelu(x, self.slope),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        slope = graph.parameter("slope")
        after = len(graph.shape(x)) - 2
        if not self.param.channel_shared and after:
            # ONNX broadcasts slopes from the last axis; Caffe's channels are axis 1.
            slope = graph.constant(numbers(self.slope).reshape(-1, *[1] * after))
        return [graph.node("PRelu", [x, slope])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        module = code.module(f"nn.PReLU({self.slope.numel()})", weight=self.slope.reshape(-1))
        return [f"{module}({x})"]


@register_layer("ELU")
class ELU(Layer):
    """x where positive, alpha · (exp(x) − 1) elsewhere."""

    message = "elu_param"
    layout = ANY_LAYOUT
    in_place = True
    fields = ("alpha",)
    no_float16 = "exponentials"

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (F.elu(x, self.param.alpha),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [graph.node("Elu", [x], alpha=self.param.alpha)]

    def source(self, code: SourceCode, x: str) -> list[str]:
        alpha = f", alpha={literal(self.param.alpha)}" if self.param.alpha != 1 else ""
        return [f"F.elu({x}{alpha})"]


class Function(Layer):
    """A function without parameters, by the names of its torch function and its ONNX operator."""

    layout = ANY_LAYOUT
    in_place = True
    torch_name = ""
    onnx_name = ""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        module, name = self.torch_name.split(".")
        return (getattr({"torch": torch, "F": F}[module], name)(x),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [graph.node(self.onnx_name, [x])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"{self.torch_name}({x})"]


@register_layer("Sigmoid")
class Sigmoid(Function):
    """1 / (1 + exp(−x))."""

    message = "sigmoid_param"
    torch_name, onnx_name = "torch.sigmoid", "Sigmoid"
    no_float16 = "exponentials"


@register_layer("TanH")
class TanH(Function):
    """The hyperbolic tangent."""

    message = "tanh_param"
    torch_name, onnx_name = "torch.tanh", "Tanh"
    no_float16 = "exponentials"


@register_layer("BNLL")
class BNLL(Function):
    """log(1 + exp(x)), the binomial normal log likelihood."""

    torch_name, onnx_name = "F.softplus", "Softplus"
    no_float16 = "exponentials"


@register_layer("AbsVal")
class AbsVal(Function):
    """|x|; its gradient at 0 is 0."""

    in_place = False  # Caffe refuses it
    torch_name, onnx_name = "torch.abs", "Abs"


@register_layer("Swish")
class Swish(Layer):
    """x · sigmoid(beta · x) (Ramachandran et al., 2017)."""

    message = "swish_param"
    in_place = True
    fields = ("beta",)
    no_float16 = "exponentials"

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (F.silu(x) if self.param.beta == 1 else x * torch.sigmoid(self.param.beta * x),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        inner = x
        if self.param.beta != 1:
            inner = graph.node("Mul", [x, graph.constant(numbers([self.param.beta]).reshape(()))])
        return [graph.node("Mul", [x, graph.node("Sigmoid", [inner])])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [
            f"F.silu({x})"
            if self.param.beta == 1
            else f"{x} * torch.sigmoid({literal(self.param.beta)} * {x})"
        ]


@register_layer("Clip")
class Clip(Layer):
    """x limited to min and max; the gradient is passed at both limits."""

    message = "clip_param"
    in_place = True
    fields = ("min", "max")

    def setup(self, rank: int) -> None:
        for field in self.fields:
            if not self.param.HasField(field):
                raise self.error(f"clip_param.{field} is missing; state both min and max")
            if math.isnan(getattr(self.param, field)):
                raise self.error(f"clip_param.{field} is nan; state a number, or inf for no limit")

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.clamp(x, self.param.min, self.param.max),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        limits = [graph.constant(numbers([value]).reshape(())) for value in (self.param.min, self.param.max)]
        return [graph.node("Clip", [x, *limits])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"torch.clamp({x}, {literal(self.param.min)}, {literal(self.param.max)})"]


@register_layer("Threshold")
class Threshold(Layer):
    """1 where x is above the threshold, else 0."""

    message = "threshold_param"
    in_place = True
    fields = ("threshold",)
    has_gradient = False

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return ((x > self.param.threshold).to(x.dtype),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        threshold = graph.constant(numbers([self.param.threshold]).reshape(()))
        return [graph.node("Cast", [graph.node("Greater", [x, threshold])], to=1)]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"({x} > {literal(self.param.threshold)}).to({x}.dtype)"]


@register_layer("Softmax")
class Softmax(Layer):
    """exp(x) over its sum along `axis`, by default the channels."""

    message = "softmax_param"
    in_place = True
    fields = ("axis",)
    no_float16 = "exponentials"

    def setup(self, rank: int) -> None:
        self.dim = self.axis(self.param.axis, rank)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.softmax(x, self.dim),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [graph.node("Softmax", [x], axis=self.dim)]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"F.softmax({x}, dim={self.dim})"]
