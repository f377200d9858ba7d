"""LRN, local response normalisation: each value divided by a power of the squares around it."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers, literal, numbers
from .support.lengths import Kept, reshape_onnx
from .support.registry import register_layer
from .support.window import Window


def lrn_across_channels(x, size, alpha, beta, k):
    """Divide by (k + alpha / size · sum of squares over neighbouring channels)^beta, as AlexNet does.

    F.local_response_norm gives the same values; a sum of shifted slices takes a fifth to a tenth of its
    time on a CPU, and two square roots less than a general power.
    """
    squares = F.pad(x * x, (0, 0, 0, 0, size // 2, size // 2))
    channels = x.shape[1]
    total = squares[:, :channels]
    for shift in range(1, size):
        total = total + squares[:, shift : shift + channels]
    scale = total * (alpha / size) + k
    if beta == 0.75:
        root = scale.rsqrt()
        return x * (root * root.sqrt())
    return x * scale.pow(-beta)


def lrn_within_channel(x, size, alpha, beta):
    """Divide by (1 + alpha · mean of squares over a size × size window)^beta; padding counts, k does not."""
    mean = F.avg_pool2d(x * x, size, 1, size // 2)
    return x * (1 + alpha * mean).pow(-beta)


@register_layer("LRN")
class LRN(Layer):
    """Local response normalisation (Krizhevsky et al., 2012), over channels or over a window of one channel.

    ACROSS_CHANNELS divides alpha by the number of channels summed; WITHIN_CHANNEL divides it by the
    window's area and takes 1 for k whatever the field says (lrn_layer.cpp builds it of other layers).
    """

    message = "lrn_param"
    fields = ("local_size", "alpha", "beta", "norm_region", "k")

    def setup(self, rank: int) -> None:
        self.size: int = self.param.local_size
        if self.size % 2 == 0:
            raise self.error(f"local_size {self.size} must be odd")
        self.alpha: float = self.param.alpha
        self.beta: float = self.param.beta
        self.k: float = self.param.k
        for field in ("alpha", "beta", "k"):
            value = getattr(self, field)
            if not math.isfinite(value):
                raise self.error(f"{field} {value:g} must be finite")
        self.is_across = self.param.norm_region == self.param.ACROSS_CHANNELS

    def plan(self, x: Shape) -> LayerPlan:
        if len(x) != 4:
            raise self.error(f"bottom {list(x)} has {len(x)} axes; it takes 4 (N, C, H, W)")
        return LayerPlan([x])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        if self.is_across:
            return (lrn_across_channels(x, self.size, self.alpha, self.beta, self.k),)
        return (lrn_within_channel(x, self.size, self.alpha, self.beta),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        param = self.param
        # ONNX Runtime refuses an LRN node whose alpha or beta is not over 0.
        if self.is_across and param.alpha > 0 and param.beta > 0:
            return [graph.node("LRN", [x], size=self.size, alpha=param.alpha, beta=param.beta, bias=param.k)]
        squares = graph.node("Mul", [x, x])
        half = self.size // 2
        window = Window((self.size, self.size), (1, 1), (half, half), ceil_mode=False)
        if self.is_across:
            rows = graph.constant(integers(0, 1, graph.size(x, 1), -1))
            squares = graph.node("Reshape", [squares, rows])
            window = Window((self.size, 1), (1, 1), (half, 0), ceil_mode=False)
        mean = window.onnx_whole_average(graph, squares, (None, None))
        if self.is_across:
            mean = reshape_onnx(graph, mean, [Kept(axis) for axis in range(4)], x)
        alpha, shift, power = (
            graph.constant(numbers([value]).reshape(()))
            for value in (param.alpha, param.k if self.is_across else 1.0, -param.beta)
        )
        scale = graph.node("Add", [graph.node("Mul", [mean, alpha]), shift])
        return [graph.node("Mul", [x, graph.node("Pow", [scale, power])])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        values = [str(self.size), literal(self.param.alpha), literal(self.param.beta)]
        if self.is_across:
            values.append(literal(self.param.k))
        function = lrn_across_channels if self.is_across else lrn_within_channel
        return [f"{code.helper(function)}({x}, {', '.join(values)})"]
