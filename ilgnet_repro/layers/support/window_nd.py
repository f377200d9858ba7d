"""Pooling windows over any number of spatial axes, for video: their number, and pooling in torch and ONNX.

Images have their own, faster functions in window.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .base import OnnxGraph, integers, uses

# ---------------------------------------------------------------------- torch, also for written source


def pool_counts(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pad: tuple[int, ...],
    ceil_mode: bool,
    clip: str,
) -> list[int]:
    """Return the number of windows per axis.

    A window that starts past the padding is dropped where ``clip`` is "any" and an axis is padded, or where it is
    "each" and the window's own axis is padded.
    """
    counts = []
    for extent, k, s, p in zip(size, kernel, stride, pad, strict=True):
        span = extent + 2 * p - k
        count = (-(-span // s) if ceil_mode else span // s) + 1
        clips = any(pad) if clip == "any" else clip == "each" and p > 0
        counts.append(count - 1 if clips and (count - 1) * s >= extent + p else count)
    return counts


def pad_windows(
    x: Tensor,
    counts: list[int],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pad: tuple[int, ...],
    value: float,
) -> Tensor:
    """Pad the spatial axes so that all windows are within them."""
    sides: list[int] = []
    for extent, count, k, s, p in zip(x.shape[2:], counts, kernel, stride, pad, strict=True):
        sides = [p, max((count - 1) * s + k - extent - p, 0), *sides]  # F.pad takes the last axis first
    return F.pad(x, sides, value=value)


def max_pool_nd(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pad: tuple[int, ...],
    ceil_mode: bool = True,
    clip: str = "any",
) -> Tensor:
    """Return the maximum of each window; NaN is skipped, and a window without a value gives -FLT_MAX."""
    lowest = torch.finfo(x.dtype).min
    counts = pool_counts(x.shape[2:], kernel, stride, pad, ceil_mode, clip)
    padded = pad_windows(torch.where(x.isnan(), lowest, x), counts, kernel, stride, pad, lowest)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    return pool(padded, kernel, stride)


def avg_pool_nd(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pad: tuple[int, ...],
    ceil_mode: bool = True,
    clip: str = "any",
) -> Tensor:
    """Return each window's sum over its number of positions, where those past the padding are not counted."""
    counts = pool_counts(x.shape[2:], kernel, stride, pad, ceil_mode, clip)
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    top = pool(pad_windows(x, counts, kernel, stride, pad, 0.0), kernel, stride)
    for axis in range(len(kernel)):
        starts = torch.arange(top.shape[2 + axis], device=x.device, dtype=x.dtype) * stride[axis]
        limit = x.shape[2 + axis] + 2 * pad[axis]
        part = ((starts + kernel[axis]).clamp(max=limit) - starts) / kernel[axis]
        top = top / part.reshape(-1, *[1] * (len(kernel) - axis - 1))
    return top


for _helper in (max_pool_nd, avg_pool_nd):
    uses(_helper, pool_counts, pad_windows)


# ---------------------------------------------------------------------- one window


@dataclass(frozen=True)
class NdWindow:
    """A sliding window with one length per spatial axis, the method MAX or AVE, and the rule for the last window."""

    method: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    ceil_mode: bool = True
    clip: str = "any"

    def counts(self, size: Sequence[int]) -> list[int]:
        """Return the number of windows per axis; below 1 where the blob is too small."""
        return pool_counts(tuple(size), self.kernel, self.stride, self.pad, self.ceil_mode, self.clip)

    @property
    def function(self) -> Callable[..., Tensor]:
        """The function that pools in torch."""
        return max_pool_nd if self.method == "MAX" else avg_pool_nd

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x, self.kernel, self.stride, self.pad, self.ceil_mode, self.clip)

    def arguments(self) -> str:
        """Return the arguments after ``x`` in a call of `function`, as source."""
        words = [str(self.kernel), str(self.stride), str(self.pad)]
        words += [] if self.ceil_mode else ["ceil_mode=False"]
        words += [] if self.clip == "any" else [f'clip="{self.clip}"']
        return ", ".join(words)

    def onnx(self, graph: OnnxGraph, x: str, size: Sequence[int]) -> str:
        """Add the pooling of a bottom with these spatial lengths."""
        counts = self.counts(size)
        axes = list(zip(size, counts, self.kernel, self.stride, self.pad, strict=True))
        ends = [max((count - 1) * s + k - extent - p, 0) for extent, count, k, s, p in axes]
        attributes: dict[str, Any] = {
            "kernel_shape": self.kernel,
            "strides": self.stride,
            "auto_pad": "VALID",
        }
        lowest = np.asarray(np.finfo(np.float32).min, np.float32)
        if self.method == "MAX":
            return graph.node("MaxPool", [self._pad(graph, x, ends, [graph.constant(lowest)])], **attributes)
        top = graph.node("AveragePool", [self._pad(graph, x, ends, [])], **attributes)
        divisor = np.ones(())
        for extent, count, k, s, p in axes:
            starts = np.arange(count) * s
            divisor = np.multiply.outer(divisor, np.minimum(starts + k, extent + 2 * p) - starts)
        if (divisor == prod(self.kernel)).all():
            return top
        with np.errstate(divide="ignore"):  # a window past the end has no positions: 0 / 0, as in Caffe
            correction = (prod(self.kernel) / divisor).astype(np.float32)
        return graph.node("Mul", [top, graph.constant(correction[None, None])])

    def _pad(self, graph: OnnxGraph, x: str, ends: Sequence[int], value: list[str]) -> str:
        if not any((*self.pad, *ends)):
            return x
        pads = graph.constant(integers(0, 0, *self.pad, 0, 0, *ends))
        return graph.node("Pad", [x, pads, *value])
