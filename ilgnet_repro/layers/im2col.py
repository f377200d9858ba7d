"""Im2col: the windows a convolution would see, each laid out along the channels."""

from __future__ import annotations

from math import prod

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from .conv import Spatial
from .support.base import LayerPlan, OnnxGraph, Shape, SourceCode
from .support.registry import register_layer


def im2col(x, kernel, stride, pad, dilation):
    """Lay each window out along the channels; F.unfold takes two axes only and makes them one."""
    count, first = len(kernel), x.dim() - len(kernel)
    x = F.pad(x, [size for size in reversed(pad) for _ in range(2)])
    for axis in range(count):
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        x = x.unfold(first + axis, reach, stride[axis])[..., :: dilation[axis]]
    places, windows = range(first, first + count), range(first + count, first + 2 * count)
    return x.permute(*range(first), *windows, *places).flatten(first - 1, first - 1 + count)


@register_layer("Im2col")
class Im2col(Spatial):
    """A channel for every place in the window and channel of the bottom: C·kernel × places."""

    def plan(self, x: Shape) -> LayerPlan:
        # Each window of each channel is a channel of its own.
        channels = x[self.channel_axis] * prod(self.kernel)
        return LayerPlan([(*x[: self.channel_axis], channels, *self._extents(x))])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (im2col(x, self.kernel, self.stride, self.pad, self.dilation),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        # Standard ONNX has no unfold: a convolution whose weights pick one place each copies them exactly.
        channels = graph.size(x, self.channel_axis)
        picks = np.tile(np.eye(prod(self.kernel), dtype=np.float32), (channels, 1))
        weight = graph.constant(picks.reshape(-1, 1, *self.kernel))
        return [self._windowed_onnx(graph, x, "Conv", [weight], channels * prod(self.kernel), channels)]

    def source(self, code: SourceCode, x: str) -> list[str]:
        geometry = f"{self.kernel}, {self.stride}, {self.pad}, {self.dilation}"
        return [f"{code.helper(im2col)}({x}, {geometry})"]
