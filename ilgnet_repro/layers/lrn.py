"""LRN, local response normalisation: the layer, its modules of the fast path, its ONNX form as a convolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit._trace import is_tracing

from .support.base import (
    ANY_LAYOUT,
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
from .support.shapes import Kept, reshape_onnx
from .support.window import Window


def lrn_across_channels(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Return x / (k + alpha / size · sum of squares over neighbouring channels)^beta, as in AlexNet.

    F.local_response_norm returns the same values; a sum of shifted slices takes a fifth to a tenth of its
    time on a CPU, and two square roots take less than a general power.
    """
    channels = x.shape[1]
    reach = max(min(size // 2, channels - 1), 0)  # there is nothing to add beyond the first and last channel
    squares = F.pad(x * x, (0, 0, 0, 0, reach, reach))
    total = squares[:, :channels]
    for shift in range(1, 2 * reach + 1):
        total = total + squares[:, shift : shift + channels]
    scale = total * (alpha / size) + k
    if beta == 0.75:
        root = scale.rsqrt()
        return x * (root * root.sqrt())
    return x * scale.pow(-beta)


def lrn_within_channel(x: Tensor, size: int, alpha: float, beta: float) -> Tensor:
    """Return x / (1 + alpha · mean of squares over a size × size window)^beta; the mean includes padding."""
    mean = F.avg_pool2d(x * x, size, 1, size // 2)
    return x * (1 + alpha * mean).pow(-beta)


@register_layer("LRN")
class LRN(Layer):
    """Local response normalisation (Krizhevsky et al., 2012), over channels or over a window of one channel.

    ACROSS_CHANNELS divides alpha by the number of channels summed; WITHIN_CHANNEL divides it by the
    window's area and uses 1 for k whatever the field states (lrn_layer.cpp composes it of other layers).
    """

    message = "lrn_param"
    layout = ANY_LAYOUT
    fields = ("local_size", "alpha", "beta", "norm_region", "k")
    no_float16 = "sums of squares"

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

    def for_inference(self, *bottoms: Shape) -> Callable[..., Sequence[Tensor]]:
        is_own = type(self).forward is LRN.forward and self.is_across
        return FastLRN(self).forward if is_own else self.forward

    def forward(self, x: Tensor) -> tuple[Tensor]:
        if self.is_across:
            if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_tracing():
                return (lrn_across_channels(x, self.size, self.alpha, self.beta, self.k),)
            compute = lrn_in_place if x.device.type == "cpu" else lrn_by_product
            return (compute(x, self.size, self.alpha / self.size, self.beta, self.k),)
        return (lrn_within_channel(x, self.size, self.alpha, self.beta),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        param = self.param
        # ONNX Runtime refuses an LRN node with an alpha or beta of 0 or less.
        if self.is_across and param.alpha > 0 and param.beta > 0:
            # OpenVINO 2026.4 computes other numbers where k is not 1: k is taken out of the sum, unless it is extreme.
            k = param.k if 1e-3 < param.k < 1e3 else 1.0
            value = graph.node(
                "LRN", [x], size=self.size, alpha=param.alpha / k, beta=param.beta, bias=param.k / k
            )
            if k == 1:
                return [value]
            return [graph.node("Mul", [value, graph.constant(numbers([k**-param.beta]).reshape(()))])]
        squares = graph.node("Mul", [x, x])
        half = self.size // 2
        window = Window((self.size, self.size), (1, 1), (half, half), ceil_mode=False)
        if self.is_across:
            rows = graph.constant(integers(0, 1, graph.size(x, 1), -1))
            squares = graph.node("Reshape", [squares, rows])
            window = Window((self.size, 1), (1, 1), (half, 0), ceil_mode=False)
        mean = window.onnx_kernel_average(graph, squares, (None, None))
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


# ---------------------------------------------------------------------- fast path


class FastLRN(nn.Module):
    """Each value divided by (k + alpha / size · sum of squares over neighbouring channels)^beta.

    An image at a time, whose ten passes find it in the processor's caches: AlexNet's first takes half as long so at batch 8.
    """

    def __init__(self, layer: LRN) -> None:
        super().__init__()
        param = layer.param
        self.arguments = (
            int(param.local_size),
            param.alpha / param.local_size,
            float(param.beta),
            float(param.k),
        )

    def forward(self, x: Tensor) -> tuple[Tensor]:
        if len(x) == 1:
            return (lrn_in_place(x, *self.arguments),)
        top = torch.empty_like(x)
        for image, part in zip(x.split(1), top.split(1), strict=True):
            part.copy_(lrn_in_place(image, *self.arguments))
        return (top,)


class CompiledLRN(nn.Module):
    """LRN over a channels-last blob in two steps: padding along the channels, then a compiled loop.

    The padding is outside the compiled function: torch.compile would fuse it, with a bounds check for every channel.
    """

    def __init__(self, lrn: FastLRN) -> None:
        super().__init__()
        self.size, *self.rest = lrn.arguments
        self.divided: Any = torch.compile(divided_by_window)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = x.permute(0, 2, 3, 1)
        padded = F.pad(x, (self.size // 2, self.size // 2))
        return (self.divided(padded, self.size, *self.rest).permute(0, 3, 1, 2),)


def lrn_in_place(x: Tensor, size: int, factor: float, beta: float, k: float) -> Tensor:
    """LRN that reuses two buffers; windows are clipped at the first and last channel."""
    squares = x.square()
    total = squares.mul(factor).add_(k)
    channels = x.shape[1]
    for shift in range(1, min(size // 2, channels - 1) + 1):
        total[:, shift:].add_(squares[:, :-shift], alpha=factor)
        total[:, :-shift].add_(squares[:, shift:], alpha=factor)
    if beta == 0.75:
        root = torch.rsqrt(total, out=total)
        torch.sqrt(root, out=squares)
        return squares.mul_(root).mul_(x)
    return total.pow_(-beta).mul_(x)


def lrn_by_product(x: Tensor, size: int, factor: float, beta: float, k: float) -> Tensor:
    """LRN with its sums as a 1×1 convolution of the squares: on a GPU two thirds of the time of `lrn_in_place`.

    A value that is not finite spreads to all channels of its position, in Caffe to its neighbours.
    """
    channel = torch.arange(x.shape[1], device=x.device)
    near = (channel[:, None] - channel).abs() <= size // 2
    total = F.conv2d(x.square(), near.to(x.dtype)[:, :, None, None])
    return total.mul_(factor).add_(k).pow_(-beta).mul_(x)


def divided_by_window(padded: Tensor, size: int, factor: float, beta: float, k: float) -> Tensor:
    """LRN over the last axis of a blob padded with ``size // 2`` zeros on both sides."""
    channels = padded.shape[-1] - size + 1
    windows = [padded[..., shift : shift + channels] for shift in range(size)]
    total = k + factor * reduce(torch.add, [window.square() for window in windows])
    middle = windows[size // 2]
    if beta == 0.75:
        root = total.rsqrt()
        return middle * root * root.sqrt()
    return middle * total.pow(-beta)


# ---------------------------------------------------------------------- ONNX


def lrn_as_convolution(graph: OnnxGraph, x: str, *, size: int, alpha: float, beta: float, bias: float) -> str:
    """Add nodes that compute what ONNX's LRN node does, several times as fast in ONNX Runtime; return their output.

    The sum of squares over neighbouring channels, times alpha / size, plus the bias, is a 1×1 convolution of the
    squares with a band matrix as its weights.  A beta of 0.75, AlexNet's, takes two square roots instead of a power.
    ONNX Runtime's LRN kernel takes half of GoogLeNet's time, this form a tenth.
    """
    channels = graph.size(x, 1)
    squares = graph.node("Mul", [x, x])
    scale = graph.node(
        "Conv", [squares, *(graph.constant(a) for a in _band_matrix(channels, size, alpha, bias))]
    )
    if beta != 0.75:
        power = graph.constant(numbers(-beta))
        return graph.node("Mul", [x, graph.node("Pow", [scale, power])])
    root = graph.node("Sqrt", [scale])
    return graph.node("Div", [x, graph.node("Mul", [root, graph.node("Sqrt", [root])])])


def _band_matrix(channels: int, size: int, alpha: float, bias: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights that sum ``size`` neighbouring channels, each times alpha / size, and the bias."""
    distance = np.abs(np.subtract.outer(np.arange(channels), np.arange(channels)))
    weights = np.where(distance <= size // 2, alpha / size, 0.0).astype(np.float32)
    return weights[:, :, None, None], np.full(channels, bias, np.float32)
