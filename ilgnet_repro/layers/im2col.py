"""Im2col: the windows a convolution would see, each laid out along the channels."""

from __future__ import annotations

from math import prod

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from .base import BlobSpec, OnnxGraph, Shape, SourceCode
from .conv import ConvolutionBase
from .registry import register


def im2col(x, kernel, stride, pad, dilation):
    """Lay each window out along the channels; F.unfold takes two axes only and makes them one."""
    count, first = len(kernel), x.dim() - len(kernel)
    x = F.pad(x, [size for size in reversed(pad) for _ in range(2)])
    for axis in range(count):
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        x = x.unfold(first + axis, reach, stride[axis])[..., :: dilation[axis]]
    places, windows = range(first, first + count), range(first + count, first + 2 * count)
    return x.permute(*range(first), *windows, *places).flatten(first - 1, first - 1 + count)


@register("Im2col")
class Im2col(ConvolutionBase):
    """A channel for every place in the window and channel of the bottom: C·kernel × places."""

    fields = (
        *("axis", "pad", "pad_h", "pad_w", "kernel_size", "kernel_h", "kernel_w"),
        *("stride", "stride_h", "stride_w", "dilation", "hole", "hole_h", "hole_w"),
    )
    bottom_count = (1, 1)
    top_count = (1, 1)

    def setup(self) -> None:
        self.group = 1

    def top_shapes(self, bottoms: list[Shape]) -> list[Shape]:
        self._read_geometry(bottoms[0])
        # Each window of each channel is a channel of its own.
        self.outputs = self.channels * prod(self.kernel)
        return super().top_shapes(bottoms)

    def blob_specs(self, bottoms: list[Shape]) -> list[BlobSpec]:
        return []

    def multiply_adds(self, bottoms: list[Shape], tops: list[Shape]) -> int:
        return 0

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (im2col(bottoms[0], self.kernel, self.stride, self.pad, self.dilation),)

    def onnx(self, graph: OnnxGraph, bottoms: list[str]) -> list[str]:
        # Standard ONNX has no unfold: a convolution whose weights pick one place each copies them exactly.
        (x,) = bottoms
        channels = graph.size(x, self.channel_axis)
        picks = np.tile(np.eye(prod(self.kernel), dtype=np.float32), (channels, 1))
        weight = graph.constant(picks.reshape(-1, 1, *self.kernel))
        return [
            self._windowed_onnx(
                graph, x, "Conv", [weight], channels * prod(self.kernel), kernel_shape=self.kernel, strides=self.stride,
                pads=self.pad * 2, dilations=self.dilation, group=channels,
            )
        ]  # fmt: skip

    def source(self, code: SourceCode, bottoms: list[str]) -> list[str]:
        geometry = f"{self.kernel}, {self.stride}, {self.pad}, {self.dilation}"
        return [f"{code.helper(im2col)}({bottoms[0]}, {geometry})"]
