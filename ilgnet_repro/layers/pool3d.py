"""Pooling of video: Pooling3D (C3D) and NdPooling."""

from __future__ import annotations

import torch
from torch import Tensor

from ..schema import caffe_pb2 as pb
from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode
from .support.registry import register_layer
from .support.shapes import shape_field
from .support.window_nd import NdWindow, pad_windows


class VideoPooling(Layer):
    """MAX or AVE over windows of one to three spatial axes; `setup` of a subclass sets `window` (None: all of a plane)."""

    window: NdWindow | None
    method: str

    def read_method(self) -> str:
        """Return MAX or AVE."""
        method: str = pb.PoolingParameter.PoolMethod.Name(self.param.pool)
        if method == "STOCHASTIC":
            raise self.error("pool STOCHASTIC is not supported; use MAX or AVE")
        return method

    def window_for(self, size: Shape) -> NdWindow:
        """Return the window for these spatial lengths."""
        ones, zeros = (1,) * len(size), (0,) * len(size)
        return self.window or NdWindow(self.method, size, ones, zeros)

    def plan(self, x: Shape) -> LayerPlan:
        window = self.window_for(x[2:])
        counts = window.counts(x[2:])
        if min(counts) < 1:
            raise self.error(f"bottom {list(x)} is too small for kernel {list(window.kernel)}")
        return LayerPlan([(*x[:2], *counts)])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.window_for(x.shape[2:])(x),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        size = tuple(graph.size(x, axis) for axis in range(2, len(graph.shape(x))))
        return [self.window_for(size).onnx(graph, x, size)]

    def source(self, code: SourceCode, x: str) -> list[str]:
        window = self.window_for(code.shape(0)[2:])
        return [f"{code.helper(window.function)}({x}, {window.arguments()})"]


def every_maximum(x: Tensor, top: Tensor, window: NdWindow) -> Tensor:
    """Return ``top`` with its gradient passed to every value of a window that equals the maximum, as in C3D."""
    padded = pad_windows(
        x, list(top.shape[2:]), window.kernel, window.stride, window.pad, torch.finfo(x.dtype).min
    )
    count = len(window.kernel)
    for axis in range(count):
        padded = padded.unfold(2 + axis, window.kernel[axis], window.stride[axis])
    top = top.detach()
    equal = torch.where(padded == top[(..., *[None] * count)], padded, 0).flatten(-count).sum(-1)
    return torch.where(equal.isfinite(), top + (equal - equal.detach()), top)


@register_layer("Pooling3D")
class Pooling3D(VideoPooling):
    """MAX or AVE over time, rows and columns; sizes are rounded up and no window is dropped.

    AVE divides by the window clipped to the padded rows and columns; time has no padding.  The gradient of MAX flows
    to every maximum.  V1 text has the fields in `pooling_param`; its upgrade moves them.  Source:
    facebookarchive/C3D, pool3d_layer.cpp.
    """

    message = "pooling3d_param"
    fields = ("pool", "kernel_size", "kernel_depth", "stride", "temporal_stride", "pad")

    def setup(self, rank: int) -> None:
        if rank != 5:
            raise self.error(f"its bottom has {rank} axes; it takes 5 (N, C, time, H, W)")
        param = self.param
        self.method = self.read_method()
        for field in ("kernel_size", "kernel_depth"):
            if not getattr(param, field):
                raise self.error(f"{field} is missing; state it in {self.message}")
        for field in ("stride", "temporal_stride"):
            if not getattr(param, field):
                raise self.error(f"{field} 0 must be at least 1")
        if param.pad and self.method == "MAX":
            raise self.error(f"pad {param.pad} goes with AVE only, not MAX")
        self.window = NdWindow(
            self.method,
            (param.kernel_depth, param.kernel_size, param.kernel_size),
            (param.temporal_stride, param.stride, param.stride),
            (0, param.pad, param.pad),
            clip="none",
        )

    def forward(self, x: Tensor) -> tuple[Tensor]:
        (top,) = super().forward(x)
        if self.method == "MAX" and x.requires_grad and self.window:
            top = every_maximum(x, top, self.window)
        return (top,)


@register_layer("NdPooling")
class NdPooling(VideoPooling):
    """MAX or AVE whose kernel, stride and pad are shapes with one length per spatial axis (yjxiong's action nets).

    Sizes are rounded up; of a padded axis the window that starts past the padding is dropped.  Source:
    cudnn_ndpooling_layer.cpp of yjxiong's fork.
    """

    message = "pooling_param"
    fields = ("pool", "kernel_shape", "stride_shape", "pad_shape", "global_pooling")

    def setup(self, rank: int) -> None:
        count = rank - 2
        if not 1 <= count <= 3:
            raise self.error(f"a bottom of {rank} axes has {count} spatial axes; 1 to 3 are supported")
        self.method = self.read_method()
        self.window = None
        if self.param.global_pooling:
            for field in ("stride_shape", "pad_shape"):
                if self.param.HasField(field):
                    raise self.error(f"global_pooling takes the whole plane; remove {field}")
            return
        kernel = shape_field(self, "kernel_shape", count, None, least=1)
        stride = shape_field(self, "stride_shape", count, 1, least=1)
        pad = shape_field(self, "pad_shape", count, 0)
        if any(p >= k for p, k in zip(pad, kernel, strict=True)):
            raise self.error(f"pad_shape {list(pad)} must be smaller than kernel_shape {list(kernel)}")
        self.window = NdWindow(self.method, kernel, stride, pad, clip="each")
