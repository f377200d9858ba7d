"""Convolutions and dense layers in the order of Caffe's CPU code, for the same rounding of their sums.

If two candidates of a maximum differ by a rounding error, as happens in most long runs, torch's order of
summation may choose another one than Caffe, and the runs diverge from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Product = Callable[[Tensor, Tensor], Tensor]
"""Takes (M, K) and (K, N), each contiguous or a transpose of such; returns their product, (M, N)."""


def blas_product(a: Tensor, b: Tensor) -> Tensor:
    """Return a·b by NumPy's BLAS: OpenBLAS in its wheels, which most builds of Caffe use."""
    return torch.from_numpy(np.matmul(a.numpy(), b.numpy()))


class CaffeSums(TorchFunctionMode):
    """A context in which `conv2d` and `linear` of float32 on the CPU run as Caffe's layers do.

    A convolution is im2col and one matrix product per image and group; the gradients of its weights are
    summed in image order.  Sources: base_conv_layer.cpp, inner_product_layer.cpp.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _OVERRIDES.get(func, func)(*args, **(kwargs or {}))


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    windows = {"kernel_size": tuple(weight.shape[2:])}
    for name, value in (("stride", stride), ("padding", padding), ("dilation", dilation)):
        windows[name] = (value, value) if isinstance(value, int) else tuple(value)
    apply: Callable[..., Tensor] = _Convolution.apply
    return apply(x, weight, bias, windows, groups)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    apply: Callable[..., Tensor] = _InnerProduct.apply
    return apply(x.reshape(-1, x.shape[-1]), weight, bias).reshape(*x.shape[:-1], -1)


_OVERRIDES: dict[Any, Callable[..., Tensor]] = {F.conv2d: _conv2d, F.linear: _linear}


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, windows: dict[str, Any], groups: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.windows, ctx.groups, ctx.has_bias = windows, groups, bias is not None
        rows = weight.reshape(groups, weight.shape[0] // groups, -1)
        images = []
        for image in x:
            columns = _columns(image, windows, groups)
            parts = [blas_product(row, column) for row, column in zip(rows, columns, strict=True)]
            images.append(torch.cat(parts))
        y = torch.stack(images)
        if bias is not None:
            y += bias[:, None]
        return y.view(len(x), weight.shape[0], *_output_size(x, windows))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        top = grads[0].reshape(len(x), ctx.groups, weight.shape[0] // ctx.groups, -1)
        rows = weight.reshape(ctx.groups, weight.shape[0] // ctx.groups, -1)
        grad_weight, grad_bias = torch.zeros_like(rows), torch.zeros(weight.shape[0])
        bottoms = []
        for image, grad in zip(x, top, strict=True):
            if ctx.has_bias:
                grad_bias += grad.sum(-1).flatten()
            for group, column in enumerate(_columns(image, ctx.windows, ctx.groups)):
                grad_weight[group] += blas_product(grad[group], column.T)
            if ctx.needs_input_grad[0]:
                parts = [blas_product(row.T, one) for row, one in zip(rows, grad, strict=True)]
                bottoms.append(F.fold(torch.cat(parts)[None], x.shape[2:], **ctx.windows)[0])
        grad_x = torch.stack(bottoms) if bottoms else None
        return grad_x, grad_weight.view_as(weight), grad_bias if ctx.has_bias else None, None, None


class _InnerProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        y = blas_product(x, weight.T)
        return y if bias is None else y.add_(bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        grad_x = blas_product(grad, weight) if ctx.needs_input_grad[0] else None
        return grad_x, blas_product(grad.T, x), grad.sum(0) if ctx.has_bias else None


def _columns(image: Tensor, windows: dict[str, Any], groups: int) -> Tensor:
    """im2col of one image: (groups, values of a window, windows)."""
    columns = F.unfold(image[None], **windows)[0]
    return columns.view(groups, -1, columns.shape[-1])


def _output_size(x: Tensor, windows: dict[str, Any]) -> list[int]:
    """Height and width of a convolution's top."""
    sizes = []
    for axis in (0, 1):
        kernel, stride, pad, dilation = (
            windows[name][axis] for name in ("kernel_size", "stride", "padding", "dilation")
        )
        sizes.append((x.shape[2 + axis] + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1)
    return sizes
